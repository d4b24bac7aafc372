//! Tasks whose owner's attestor was removed or now gives other identities. They can be ended, but
//! grant nothing more.

use std::future::ready;

use secrecy::SecretString;
use serde_json::json;
use taskpass::attest::Evidence;
use taskpass::broker::BrokerError;
use taskpass::broker::issuance::Issued;
use taskpass::broker::tasks::{Delegation, TaskAuthority};
use taskpass::domain::generation::{Generation, PolicyFile};
use taskpass::domain::task::{TaskEnd, TaskState};
use taskpass::domain::trust::AttestorSpec;
use taskpass::policy::{self, GenerationParts};

use crate::support::issuer::AUDIENCE;
use crate::support::rig::{
    Kind, POLICIES, Rig, ask, ask_in, ask_joining, bearer, child_of, handle, refusal,
};

/// The audience of tokens for the attestor that will be removed.
const TEAM: &str = "https://team.taskpass.test";

const TEAM_POLICY: &str = r#"
@id("team-open") @description("the team opens")
permit (principal == Workload::team::"team:lead", action == Action::"openTask", resource);
@id("team") @description("the team reads and writes") @max_ttl("900")
permit (principal == Workload::team::"team:lead", action in [Action::"orders:read", Action::"orders:write"], resource);
"#;

struct World {
    rig: Rig,
    before: Generation,
}

/// A copy of the rig's own attestor with another name and audience.
fn team(own: &AttestorSpec, identity: &str) -> AttestorSpec {
    let mut spec = serde_json::to_value(own).unwrap();
    spec["name"] = json!("team");
    spec["audience"] = json!(TEAM);
    spec["identity"] = json!(identity);
    serde_json::from_value(spec).unwrap()
}

async fn begin(kind: Kind) -> World {
    let rig = Rig::on(kind).start().await;
    let (_, bytes) = rig
        .broker
        .administration
        .generation(&rig.admin())
        .await
        .unwrap();
    let world = World {
        before: serde_json::from_slice(&bytes).unwrap(),
        rig,
    };
    world.decide_by(Some("{sub}")).await;
    world
}

impl World {
    /// Activates a generation with the team's attestor under this identity template, or without it.
    async fn decide_by(&self, identity: Option<&str>) {
        let own = &self.before.attestors[0];
        self.decide_with(identity.map(|identity| team(own, identity)))
            .await;
    }

    /// Activates a generation with this attestor of the team, or without one.
    async fn decide_with(&self, of_team: Option<AttestorSpec>) {
        let mut text = POLICIES.to_owned();
        let mut attestors = self.before.attestors.clone();
        if let Some(spec) = of_team {
            attestors.push(spec);
            text.push_str(TEAM_POLICY);
        }
        let parts = GenerationParts {
            policies: vec![PolicyFile {
                name: "rig.cedar".into(),
                text,
            }],
            attestors,
            resources: self.before.resources.clone(),
            task_types: self.before.task_types.clone(),
            limits: self.before.limits,
            retention: self.before.retention,
        };
        let own = vec![
            self.rig.broker.core.issuer().to_owned(),
            AUDIENCE.into(),
            TEAM.into(),
        ];
        let (next, _) = policy::build(parts, &own).unwrap();
        let activated = self
            .rig
            .broker
            .administration
            .activate(&self.rig.admin(), ready(Some(next)))
            .await;
        activated.unwrap().unwrap();
    }

    fn lead(&self) -> Evidence {
        bearer(&self.rig.token("lead", json!({"aud": TEAM})))
    }

    async fn open(&self) -> Issued {
        let asked = ask(&["orders:read", "orders:write"]);
        self.rig
            .broker
            .issuance
            .issue(self.lead(), asked)
            .await
            .unwrap()
    }

    async fn heartbeat(&self, issued: &Issued) -> Result<(), BrokerError> {
        self.rig.heartbeat(issued).await
    }

    async fn lend(&self, issued: &Issued) -> Result<Delegation, BrokerError> {
        self.rig.delegate(issued, "agent:child").await
    }

    /// Requests a credential for a child task with this delegation.
    async fn child(&self, parent: &Issued, lent: &Delegation) -> Result<Issued, BrokerError> {
        let task = child_of(parent.task.id, lent);
        self.rig
            .issue("agent:child", ask_in(task, &["orders:read"]))
            .await
    }
}

fn is_withdrawn<T: std::fmt::Debug>(result: Result<T, BrokerError>) -> bool {
    matches!(result, Err(BrokerError::OwnerWithdrawn))
}

on_both_stores! {
    fn a_task_whose_attestor_was_removed_lends_nothing_and_its_children_get_nothing;
    fn a_task_does_not_go_on_by_another_issuer_under_the_name_of_its_attestor;
    fn a_task_goes_on_when_its_attestor_is_back;
}

async fn a_task_whose_attestor_was_removed_lends_nothing_and_its_children_get_nothing(
    world: World,
) {
    for (change, what) in [
        (None, "removed"),
        (Some("team:{sub}"), "with other identities"),
    ] {
        world.decide_by(Some("{sub}")).await;
        let parent = world.open().await;
        let early = world.lend(&parent).await.unwrap();
        let late = world.lend(&parent).await.unwrap();
        let last = world.lend(&parent).await.unwrap();
        let child = world.child(&parent, &early).await.unwrap();
        world.heartbeat(&parent).await.unwrap();

        world.decide_by(change).await;
        assert!(is_withdrawn(world.lend(&parent).await), "{what}");
        assert!(is_withdrawn(world.heartbeat(&parent).await), "{what}");
        // An earlier delegation opens no task, with or without a credential.
        assert_eq!(
            refusal(world.child(&parent, &late).await),
            "owner-withdrawn",
            "{what}"
        );
        let evidence = world.rig.evidence("agent:child");
        let opened = world
            .rig
            .broker
            .tasks
            .open_task(&evidence, child_of(parent.task.id, &last))
            .await;
        let Err(BrokerError::Denied(denied)) = opened else {
            panic!("{what}: {opened:?}")
        };
        assert_eq!(denied.refusal.code.as_str(), "owner-withdrawn", "{what}");
        // An open child task gets nothing more, although its own attestor still exists.
        let joined = world
            .rig
            .issue("agent:child", ask_joining(&child, &["orders:read"]))
            .await;
        assert_eq!(refusal(joined), "owner-withdrawn", "{what}");
        assert!(is_withdrawn(world.heartbeat(&child).await), "{what}");
        assert!(
            is_withdrawn(world.rig.delegate(&child, "agent:orders").await),
            "{what}"
        );
        // The removed attestor's evidence is refused.
        let joined = world
            .rig
            .broker
            .issuance
            .issue(world.lead(), ask_joining(&parent, &["orders:read"]))
            .await;
        assert!(joined.is_err(), "{what}");
        // The task can still be ended, which ends its children.
        let ended = world.rig.end(&parent, TaskEnd::Complete).await.unwrap();
        assert_eq!(ended.task.state, TaskState::Completed, "{what}");
        assert!(!world.rig.is_good(&child).await, "{what}");
    }
}

async fn a_task_does_not_go_on_by_another_issuer_under_the_name_of_its_attestor(world: World) {
    let changed = |member: &str, value: serde_json::Value| {
        let mut spec = serde_json::to_value(team(&world.before.attestors[0], "{sub}")).unwrap();
        spec[member] = value;
        serde_json::from_value::<AttestorSpec>(spec).unwrap()
    };
    let others = [
        changed("issuer", json!("https://another.test")),
        changed("required", json!({"sub": "lead"})),
    ];
    for other in others {
        world.decide_by(Some("{sub}")).await;
        let parent = world.open().await;
        let lent = world.lend(&parent).await.unwrap();
        world.decide_with(Some(other)).await;
        assert!(is_withdrawn(world.heartbeat(&parent).await));
        assert!(is_withdrawn(world.lend(&parent).await));
        assert_eq!(
            refusal(world.child(&parent, &lent).await),
            "owner-withdrawn"
        );
        world.rig.end(&parent, TaskEnd::Abort).await.unwrap();
    }
    // A change of the accepted tokens' form does not matter.
    world.decide_by(Some("{sub}")).await;
    let parent = world.open().await;
    world
        .decide_with(Some(changed("max_age_seconds", json!(120))))
        .await;
    world.heartbeat(&parent).await.unwrap();
}

async fn a_task_goes_on_when_its_attestor_is_back(world: World) {
    let parent = world.open().await;
    world.decide_by(None).await;
    assert!(is_withdrawn(world.heartbeat(&parent).await));
    world.decide_by(Some("{sub}")).await;
    world.heartbeat(&parent).await.unwrap();
    let lent = world.lend(&parent).await.unwrap();
    world.child(&parent, &lent).await.unwrap();
    // A task that no change affected can be aborted by its handle.
    let authority = TaskAuthority::Handle(handle(&parent), Evidence::default());
    let ended = world
        .rig
        .broker
        .tasks
        .end_task(parent.task.id, authority, TaskEnd::Abort)
        .await
        .unwrap();
    assert_eq!(ended.task.state, TaskState::Aborted);
    let guessed = TaskAuthority::Handle(SecretString::from("tph_x"), Evidence::default());
    let refused = world
        .rig
        .broker
        .tasks
        .end_task(parent.task.id, guessed, TaskEnd::Abort)
        .await;
    assert!(matches!(refused, Err(BrokerError::NotFound(_))));
}
