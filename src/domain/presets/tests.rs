//! Each preset is consistent: it declares every claim that it uses.

use super::*;

const ALL: [Preset; 6] = [
    Preset::GithubActions,
    Preset::Gitlab,
    Preset::Kubernetes,
    Preset::Buildkite,
    Preset::Circleci,
    Preset::Aws,
];

fn claim(rules: &'static Rules, name: &str) -> &'static Claim {
    let mut claims = rules.claims.iter();
    claims
        .find(|claim| claim.name == name)
        .unwrap_or_else(|| panic!("{}: {name}", rules.provider))
}

#[test]
fn templates_are_made_of_ids_that_every_token_has() {
    for rules in ALL.map(Preset::rules) {
        let templates = [Some(rules.identity), rules.instance];
        for part in templates.into_iter().flatten().flat_map(placeholders) {
            let claim = claim(rules, part.trim_matches(['{', '}']));
            let good = claim.immutable && !claim.optional && !claim.caller_shaped;
            assert!(good, "{}: {part}", rules.provider);
        }
        assert!(placeholders(rules.identity).count() > 0);
    }
}

#[test]
fn owners_and_conditions_are_declared_claims() {
    for rules in ALL.map(Preset::rules) {
        assert!(!rules.pins.is_empty());
        for pin in rules.pins {
            let claim = claim(rules, pin);
            assert!(claim.immutable && !claim.caller_shaped, "{pin}");
        }
        for (name, _) in rules.required {
            assert!(!claim(rules, name).optional, "{name}");
        }
        for allowed in rules.allowed {
            assert!(!claim(rules, allowed.claim).immutable);
            let within = |value| allowed.most.contains(value);
            assert!(allowed.default.iter().all(within), "{}", allowed.claim);
        }
        for (one, other) in rules.equal {
            assert!(!claim(rules, one).optional && claim(rules, other).optional);
        }
    }
}

#[test]
fn what_is_a_name_is_no_id_and_what_is_shaped_is_no_id() {
    for rules in ALL.map(Preset::rules) {
        for claim in rules.claims {
            assert!(!(claim.immutable && claim.caller_shaped), "{}", claim.name);
            let listed = rules.names.contains(&claim.name);
            assert!(!(claim.immutable && listed), "{}", claim.name);
        }
    }
}

#[test]
fn the_placeholders_of_a_template_are_found_in_order() {
    let found: Vec<_> = placeholders("a:{b}/{c}:d").collect();
    assert_eq!(found, ["{b}", "{c}"]);
    assert_eq!(placeholders("plain").count(), 0);
}
