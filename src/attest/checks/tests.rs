use serde_json::json;

use super::*;

fn oidc(change: &dyn Fn(&mut Value)) -> AttestorSpec {
    let mut spec = json!({
        "kind": "oidc",
        "name": "github",
        "issuer": "https://token.actions.githubusercontent.com",
        "audience": "https://broker.example",
        "algorithms": ["RS256"],
        "required": {"repository_owner_id": "1234"},
        "identity": "repo:{repository_id}",
        "instance": "{run_id}:{run_attempt}",
        "claims": {
            "repository_id": {"type": "string", "immutable": true},
            "run_id": {"type": "string", "immutable": true},
            "run_attempt": {"type": "long", "immutable": true},
            "ref": {"type": "string", "caller_shaped": true},
            "environment": {"type": "string", "immutable": true, "optional": true},
            "groups": {"type": "set", "immutable": true},
        },
    });
    change(&mut spec);
    serde_json::from_value(spec).unwrap()
}

fn refused_key(specs: &[AttestorSpec]) -> Option<&'static str> {
    check(specs, &["https://broker.example".into()], false)
        .err()
        .map(|e| e.key)
}

#[test]
fn a_good_attestor_loads() {
    assert_eq!(refused_key(&[oidc(&|_| {})]), None);
    let own_cluster = oidc(&|spec| {
        spec["issuer"] = json!("https://oidc.cluster.example");
        spec["required"] = json!({});
        spec["single_tenant"] = json!(true);
    });
    assert_eq!(refused_key(&[own_cluster]), None);
    let pinned = oidc(&|spec| {
        spec["issuer"] = json!("https://127.0.0.1:9/x");
        spec["discovery"] = json!("here");
        spec["required"] = json!({"repository_id": "7"});
    });
    assert_eq!(refused_key(&[pinned]), None);
}

#[test]
fn an_issuer_that_is_no_public_address_needs_an_endpoint() {
    let at = |issuer: &str, change: &dyn Fn(&mut Value)| {
        oidc(&|spec| {
            spec["issuer"] = json!(issuer);
            spec["required"] = json!({"repository_id": "7"});
            change(spec);
        })
    };
    for private in [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://localhost:8443",
        "https://10.0.0.1",
        "https://169.254.169.254",
        "https://[fd00::1]",
        "https://[::ffff:10.0.0.1]",
    ] {
        assert_eq!(
            refused_key(&[at(private, &|_| {})]),
            Some("issuer"),
            "{private}"
        );
        for key in ["discovery", "keys_from"] {
            let named = at(private, &|spec| spec[key] = json!("here"));
            assert_eq!(refused_key(&[named]), None, "{private} {key}");
        }
    }
    let both = at("https://issuer.example", &|spec| {
        spec["discovery"] = json!("here");
        spec["keys_from"] = json!("here");
    });
    assert_eq!(refused_key(&[both]), Some("keys_from"));
}

#[test]
fn an_http_issuer_on_loopback_is_for_development_mode_alone() {
    let plain = oidc(&|spec| {
        spec["issuer"] = json!("http://127.0.0.1:9/x");
        spec["required"] = json!({"repository_id": "7"});
        spec["discovery"] = json!("here");
    });
    assert_eq!(refused_key(std::slice::from_ref(&plain)), Some("issuer"));
    assert!(check(&[plain], &[], true).is_ok());
    let unnamed = oidc(&|spec| {
        spec["issuer"] = json!("http://127.0.0.1:9/x");
        spec["required"] = json!({"repository_id": "7"});
    });
    let refused = check(&[unnamed], &[], true).unwrap_err();
    assert_eq!(refused.key, "issuer");
    let elsewhere = oidc(&|spec| {
        spec["issuer"] = json!("http://issuer.example");
        spec["required"] = json!({"repository_id": "7"});
        spec["discovery"] = json!("here");
    });
    assert!(check(&[elsewhere], &[], true).is_err());
}

#[test]
fn each_field_is_checked() {
    for (field, value, key) in [
        ("name", json!("Git-hub"), "name"),
        ("name", json!("1github"), "name"),
        ("name", json!("a".repeat(33)), "name"),
        ("name", json!(""), "name"),
        ("issuer", json!(""), "issuer"),
        ("issuer", json!("github"), "issuer"),
        ("issuer", json!("http://token.example"), "issuer"),
        ("issuer", json!("https://u:p@token.example"), "issuer"),
        ("issuer", json!("https://token.example/?a=b"), "issuer"),
        ("issuer", json!("https://Broker.example/"), "issuer"),
        ("audience", json!(""), "audience"),
        ("audience", json!("https://github.com/acme"), "audience"),
        ("audience", json!("sts.amazonaws.com"), "audience"),
        ("audience", json!("api://AzureADTokenExchange"), "audience"),
        (
            "audience",
            json!("https://token.actions.githubusercontent.com/"),
            "audience",
        ),
        (
            "audience",
            json!("https://kubernetes.default.svc.cluster.local"),
            "audience",
        ),
        ("audience", json!("https://buildkite.com/acme"), "audience"),
        ("algorithms", json!([]), "algorithms"),
        ("algorithms", json!(["RS256", "HS256"]), "algorithms"),
        ("algorithms", json!(["none"]), "algorithms"),
        ("algorithms", json!(["rs256"]), "algorithms"),
        ("typ", json!(""), "typ"),
        ("typ", json!("DPoP+jwt"), "typ"),
        ("required", json!({}), "required"),
        ("required", json!({"ref": "refs/heads/main"}), "required"),
        ("required", json!({"repository_owner_id": ""}), "required"),
        (
            "required",
            json!({"repository_owner_id": ["1"]}),
            "required",
        ),
        ("single_tenant", json!(true), "single_tenant"),
        ("identity", json!("everyone"), "identity"),
        ("identity", json!("{sub}"), "identity"),
        ("identity", json!("{ref}"), "identity"),
        ("identity", json!("{environment}"), "identity"),
        ("identity", json!("{groups}"), "identity"),
        ("instance", json!("{run_id}{run_attempt}"), "instance"),
        ("leeway_seconds", json!(61), "leeway_seconds"),
        ("max_age_seconds", json!(3_601), "max_age_seconds"),
        ("max_age_seconds", json!(0), "max_age_seconds"),
        ("max_stale_seconds", json!(86_401), "max_stale_seconds"),
        ("max_stale_seconds", json!(59), "max_stale_seconds"),
    ] {
        let spec = oidc(&|spec| spec[field] = value.clone());
        assert_eq!(refused_key(&[spec]), Some(key), "{field} = {value}");
    }
    for (field, value) in [
        ("leeway_seconds", json!(60)),
        ("max_age_seconds", json!(3_600)),
        ("max_stale_seconds", json!(86_400)),
        ("name", json!("a".repeat(32))),
    ] {
        let spec = oidc(&|spec| spec[field] = value.clone());
        assert_eq!(refused_key(&[spec]), None, "{field} = {value}");
    }
}

#[test]
fn an_audience_that_an_issuer_gives_to_everybody_does_not_load() {
    const ORGANISATION: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let circleci = format!("https://oidc.circleci.com/org/{ORGANISATION}");
    let ghes = "https://git.example/_services/token";
    for (issuer, audience, good) in [
        (circleci.as_str(), ORGANISATION, false),
        (&circleci, &ORGANISATION.to_uppercase(), false),
        (&circleci, &circleci, false),
        (&circleci, "urn:taskpass:broker", true),
        (ghes, "https://git.example/acme", false),
        (ghes, "https://git.example/acme/", false),
        (ghes, "https://github.com/acme", true),
        ("https://gitlab.com", "https://gitlab.com", false),
        ("https://gitlab.com", "https://GitLab.com/", false),
        (
            "https://gitlab.com",
            "api://azureadtokenexchangeusgov",
            false,
        ),
        ("https://gitlab.com", "STS.amazonaws.com", false),
        (
            "https://gitlab.com",
            "//iam.googleapis.com/projects/1",
            false,
        ),
        ("https://oidc.vercel.com", "https://vercel.com/acme", false),
        (
            "https://api.bitbucket.org/x",
            "ari:cloud:bitbucket::workspace/1",
            false,
        ),
        ("https://gitlab.com", "https://broker.example", true),
    ] {
        let spec = oidc(&|spec| {
            spec["issuer"] = json!(issuer);
            spec["audience"] = json!(audience);
            spec["required"] = json!({
                "oidc.circleci.com/org-id": ORGANISATION,
                "namespace_id": "1",
                "owner_id": "1",
                "repository_id": "1",
            });
        });
        let expected = (!good).then_some("audience");
        assert_eq!(refused_key(&[spec]), expected, "{issuer} {audience}");
    }
}

#[test]
fn every_shared_issuer_needs_a_pin() {
    for issuer in [
        "https://gitlab.com",
        "https://oidc.circleci.com/org/1",
        "https://agent.buildkite.com",
        "https://accounts.google.com",
        "https://login.microsoftonline.com/x/v2.0",
        "https://login.microsoftonline.us/x/v2.0",
        "https://sts.windows.net/x/",
        "https://app.terraform.io",
        "https://oidc.vercel.com",
    ] {
        let unpinned = oidc(&|spec| spec["issuer"] = json!(issuer));
        assert_eq!(refused_key(&[unpinned]), Some("required"), "{issuer}");
        let alone = oidc(&|spec| {
            spec["issuer"] = json!(issuer);
            spec["single_tenant"] = json!(true);
        });
        assert_eq!(refused_key(&[alone]), Some("single_tenant"), "{issuer}");
    }
}

#[test]
fn attestors_do_not_overlap() {
    let renamed = |audience: &'static str| {
        oidc(&move |spec| {
            spec["name"] = json!("other");
            spec["audience"] = json!(audience);
        })
    };
    let keys = |name: &str| -> AttestorSpec {
        serde_json::from_value(json!({"kind": "key", "name": name})).unwrap()
    };
    let first = oidc(&|_| {});
    assert_eq!(refused_key(&[first.clone(), first.clone()]), Some("name"));
    assert_eq!(
        refused_key(&[first.clone(), renamed("https://broker.example")]),
        Some("audience")
    );
    assert_eq!(refused_key(&[first, renamed("urn:other")]), None);
    assert_eq!(refused_key(&[keys("a"), keys("b")]), Some("kind"));
}

#[test]
fn a_complaint_names_attestor_and_remedy() {
    let spec = oidc(&|spec| spec["algorithms"] = json!(["none"]));
    let text = check(&[spec], &[], false).unwrap_err().to_string();
    assert!(
        text.contains("`github`") && text.contains("choose among RS256"),
        "{text}"
    );
}
