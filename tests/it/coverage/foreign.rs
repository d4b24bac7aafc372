//! Sessions of foreign accounts, and the broker's own calls.

use super::*;

#[test]
fn a_session_of_a_foreign_account_and_what_it_read_are_unproven() {
    let log = made();
    let name = format!("tp-{}", SESSION.replace('-', ""));
    let making = |role: &str| {
        let mut event = event("e-0", IN_TIME);
        let identity = event["userIdentity"]["sessionContext"]["sourceIdentity"].clone();
        event["eventSource"] = "sts.amazonaws.com".into();
        event["eventName"] = "AssumeRoleWithWebIdentity".into();
        event["userIdentity"] = json!({"type": "WebIdentityUser", "userName": "resource:reports"});
        event["resources"] = Value::Null;
        event["requestParameters"] = json!({"roleArn": role, "roleSessionName": name});
        event["responseElements"] = json!({"sourceIdentity": identity});
        event
    };
    let reading = |role: &str, account: &str| {
        let mut event = event("e-1", IN_TIME);
        let who = &mut event["userIdentity"];
        who["arn"] = format!("arn:aws:sts::{account}:assumed-role/{role}/{name}").into();
        who["accountId"] = account.into();
        who["sessionContext"]["sessionIssuer"] =
            json!({"type": "Role", "arn": format!("arn:aws:iam::{account}:role/{role}")});
        event
    };
    let own = [making(ROLE), reading("reports", "123456789012")];
    let report = json_of(&log.run(trail(&own), &["--json"]), 0);
    assert_eq!(counts(&report), [2, 0, 0, 0, 0]);

    let mut other_issuer = reading("reports", "123456789012");
    other_issuer["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"] =
        "arn:aws:iam::999999999999:role/reports".into();
    let mut other_account = reading("reports", "123456789012");
    other_account["userIdentity"]["accountId"] = "999999999999".into();
    let mut made_elsewhere = making(ROLE);
    made_elsewhere["responseElements"]["assumedRoleUser"] =
        json!({"arn": format!("arn:aws:sts::999999999999:assumed-role/reports/{name}")});
    let mut unnamed = making(ROLE);
    unnamed["requestParameters"]["roleArn"] = Value::Null;
    let mut by_id_alone = reading("reports", "123456789012");
    by_id_alone["userIdentity"]["arn"] = Value::Null;
    by_id_alone["userIdentity"]["sessionContext"]["sessionIssuer"] = Value::Null;
    for foreign in [
        making("arn:aws:iam::999999999999:role/reports"),
        making("arn:aws:iam::123456789012:role/Admin"),
        making("arn:aws:iam::123456789012:role/other/reports"),
        reading("reports", "999999999999"),
        reading("Admin", "123456789012"),
        other_issuer,
        other_account,
        made_elsewhere,
        unnamed,
        by_id_alone,
    ] {
        let report = json_of(
            &log.run(trail(std::slice::from_ref(&foreign)), &["--json"]),
            1,
        );
        assert_eq!(counts(&report), [0, 0, 0, 1, 0], "{foreign}");
        assert_eq!(
            report["classes"]["unproven"]["reasons"],
            json!({"other_role": 1}),
            "{foreign}"
        );
    }
}

#[test]
fn the_brokers_own_calls_can_be_left_out_exactly() {
    let log = made();
    let role = "arn:aws:iam::123456789012:role/taskpass-revoker";
    let session = "arn:aws:sts::123456789012:assumed-role/taskpass-revoker/taskpass-revoker";
    let own = |name: &str, source: &str, who: Value| {
        let mut event = event(name, IN_TIME);
        event["eventName"] = name.into();
        event["eventSource"] = source.into();
        event["userIdentity"] = who;
        event["resources"] = Value::Null;
        event["requestParameters"] = json!({"roleName": "reports"});
        event
    };
    let acting = json!({
        "type": "AssumedRole", "principalId": "AROAREVOKER:taskpass-revoker", "arn": session
    });
    let write = own("PutRolePolicy", "iam.amazonaws.com", acting.clone());
    let mut assumed = own(
        "AssumeRoleWithWebIdentity",
        "sts.amazonaws.com",
        json!({"type": "WebIdentityUser", "userName": "revoker"}),
    );
    assumed["resources"] = json!([{"type": "AWS::IAM::Role", "ARN": role}]);
    assumed["requestParameters"] = json!({"roleArn": role, "roleSessionName": "taskpass-revoker"});
    let filters = [
        format!("principal=revoker,action=sts:AssumeRoleWithWebIdentity,resource={role}"),
        format!("principal={session},action=iam:PutRolePolicy"),
    ];
    let options = ["--json", "--except", &filters[0], "--except", &filters[1]];
    let events = [event("e-1", IN_TIME), write, assumed];
    let report = json_of(&log.run(trail(&events), &["--json"]), 1);
    assert_eq!(counts(&report), [1, 0, 0, 2, 0]);
    let report = json_of(&log.run(trail(&events), &options), 0);
    assert_eq!(report["records"]["set_aside"], json!({"among --except": 2}));
    // Other events of the same session, name or role are not excluded.
    let mut elsewhere = acting.clone();
    elsewhere["arn"] = "arn:aws:sts::999999999999:assumed-role/Admin/taskpass-revoker".into();
    let mut other_role = events[2].clone();
    let admin = "arn:aws:iam::123456789012:role/Admin";
    other_role["resources"][0]["ARN"] = admin.into();
    other_role["requestParameters"]["roleArn"] = admin.into();
    for other in [
        own("AttachRolePolicy", "iam.amazonaws.com", acting),
        own("PutRolePolicy", "iam.amazonaws.com", elsewhere),
        other_role,
    ] {
        let events = [event("e-1", IN_TIME), other];
        let report = json_of(&log.run(trail(&events), &options), 1);
        assert_eq!(counts(&report), [1, 0, 0, 1, 0]);
    }
}
