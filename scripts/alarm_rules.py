"""Compares the alarms with the page that documents them, and with their tests."""

import re
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROW = re.compile(r"\| `(Taskpass\w+)` \| .* \| `(.+)`(?: for (\d+) ([mh]))? \|")


def read(name: str) -> dict:
    return YAML(typ="safe").load(Path("deploy/prometheus", name).read_text())


def main() -> int:
    faults = []
    (group,) = read("rules.yml")["groups"]
    rules = {rule["alert"]: (rule["expr"], rule.get("for")) for rule in group["rules"]}

    documented = {}
    for line in Path("docs/reference/metrics.md").read_text().splitlines():
        if row := ROW.fullmatch(line):
            name, expr, count, unit = row.groups()
            documented[name] = (expr.replace("\\|", "|"), f"{count}{unit}" if count else None)
    for name in rules.keys() | documented.keys():
        if rules.get(name) != documented.get(name):
            faults.append(f"{name}: rules.yml has {rules.get(name)}, the page {documented.get(name)}")

    fires, silent = set(), set()
    for test in read("rules_test.yml")["tests"]:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
    for name in rules.keys() - fires:
        faults.append(f"{name}: no test shows that it fires")
    for name in rules.keys() - silent:
        faults.append(f"{name}: no test shows that it is silent before its event")

    for fault in faults:
        print(f"alarms: {fault}", file=sys.stderr)
    if not faults:
        print(f"alarms: all {len(rules)} are documented and tested", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
