// Evaluates policies with iam-simulate. Each line of the file `questions` is one question:
//
//   {"principal", "action", "resource", "account", "context": {…}, "role": [document, …],
//    "session": document?, "trust": document?}
//
// and each line of the output its answer: {"verdict": "Allowed" | "ExplicitlyDenied" |
// "ImplicitlyDenied"}, or {"error": …} if the question cannot be judged as intended.

import { readFileSync } from 'node:fs';
import { runSimulation } from '@cloud-copilot/iam-simulate';

async function judge(question) {
  const simulation = {
    request: {
      principal: question.principal,
      action: question.action,
      resource: { resource: question.resource, accountId: question.account },
      contextVariables: question.context,
    },
    identityPolicies: question.role.map((policy, n) => ({ name: `role-${n}`, policy })),
    serviceControlPolicies: [],
    resourceControlPolicies: [],
  };
  if (question.session) simulation.sessionPolicy = question.session;
  if (question.trust) simulation.resourcePolicy = question.trust;
  const outcome = await runSimulation(simulation, {});
  if (outcome.resultType === 'error') return { error: outcome.errors };
  // An ignored context key could have changed the verdict.
  const ignored = outcome.result?.ignoredContextKeys ?? [];
  if (ignored.length > 0) return { error: { message: 'ignored context', ignored } };
  return { verdict: outcome.overallResult };
}

const answers = [];
for (const line of readFileSync('questions', 'utf8').split('\n').filter(Boolean)) {
  answers.push(JSON.stringify(await judge(JSON.parse(line))));
}
process.stdout.write(answers.join('\n') + '\n');
