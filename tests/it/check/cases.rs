//! Every cause for which a start is refused, with the words of its message.

use super::*;

fn over_tls(certificate: String, key: String, says: &'static str) -> Case {
    let tls = "listen = \"127.0.0.1:0\"\n[server.tls]\ncertificate = \"certificate.pem\"\n\
               private_key = \"key.pem\"";
    let config = GOOD
        .replace("http://127.0.0.1:8443", "https://broker.example")
        .replace("listen = \"127.0.0.1:0\"", tls)
        .replace(
            "audience = \"https://broker.example\"",
            "audience = \"https://broker.example/ci\"",
        );
    Case {
        kind: "tls",
        config,
        files: vec![
            ("ca.pem", Identity::server().pem),
            ("certificate.pem", certificate),
            ("key.pem", key),
        ],
        says,
        in_texts: false,
        ..good()
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn cases() -> Vec<Case> {
    let server = Identity::server();
    let key = "[[attestors]]\nkind = \"key\"\nname = \"operator\"\n\
               keys = [{ workload = \"oncall\", jwk = { kty = \"EC\", crv = \"P-256\", \
               x = \"AAAA\", y = \"AAAA\" } }]\n[[resources]]";
    let rotation =
        "[keys]\nrotation_seconds = 86400\npublish_lead_seconds = 80000\n[endpoints.idp]";
    vec![
        // Faults of attestors.
        changed(
            "attestor",
            "https://broker.example/github",
            "https://github.com/octo-org",
            "`https://github.com/octo-org` is a default that tokens for other servers have too",
        ),
        changed(
            "attestor",
            "[\"RS256\"]",
            "[\"HS256\"]",
            "`HS256` is not accepted",
        ),
        changed(
            "attestor",
            "identity = \"{sub}\"",
            "identity = \"{ref}\"",
            "the claim `ref` is not immutable",
        ),
        changed(
            "attestor",
            "identity = \"{sub}\"",
            "identity = \"{sub}\"\ninstance = \"x\"",
            "`instance`: it names no claim",
        ),
        changed(
            "attestor",
            "single_tenant = true\n",
            "",
            "no owner or tenant is pinned",
        ),
        changed("attestor", "[[resources]]", key, "`oncall`"),
        // Faults of endpoints and of references to them.
        changed(
            "endpoint",
            "discovery = \"idp\"",
            "discovery = \"other\"",
            "this replica has no endpoint `other`",
        ),
        Case {
            kind: "configuration",
            files: vec![("ca.pem", "no certificate".to_owned())],
            says: "`endpoints.idp.ca_file` names a file without certificates",
            in_texts: false,
            ..good()
        },
        Case {
            kind: "configuration",
            files: Vec::new(),
            says: "`endpoints.idp.ca_file` names",
            in_texts: false,
            ..good()
        },
        // Faults of keys.
        sealed_with(&SEALING_KEY[..20], "sealing key 1 has 11 bytes, not 32"),
        sealed_with("tpk1_AAEC+w==", "sealing key 1 is not base64url"),
        sealed_with("secret", "sealing key 1 does not begin with `tpk1_`"),
        changed(
            "configuration",
            "[endpoints.idp]",
            rotation,
            "`keys.publish_lead_seconds` leaves less than 8640 seconds",
        ),
        over_tls(
            server.pem.clone(),
            Identity::server().key_pem,
            "[server.tls] cannot serve",
        ),
        over_tls(
            "no certificate".to_owned(),
            server.key_pem,
            "[server.tls] cannot serve",
        ),
        // Faults of verifiers.
        changed(
            "verifier",
            "\"ci:orders\"",
            "\"mesh:orders\"",
            "no attestor gives the identity `mesh:orders`",
        ),
        changed(
            "verifier",
            "\"ci:orders\"",
            "\"github:orders\"",
            "no attestor gives the identity `github:orders`",
        ),
        changed(
            "no_verifier",
            "verifiers = [\"ci:orders\"]\n",
            "",
            "no identity may introspect its tokens",
        ),
        // Two resources that accept the same tokens.
        changed(
            "overlap",
            "audience = \"https://archive.example\"\nactions = [\"read\"]\n\
             locations = [\"https://archive.example/v1\"]",
            "audience = \"https://orders.example/\"\nactions = [\"read\"]\n\
             locations = [\"https://orders.example/v1/payroll\"]",
            "resource `archive`: `orders` has the same audience",
        ),
        changed(
            "overlap",
            "audience = \"https://archive.example\"\nactions = [\"read\"]\n\
             locations = [\"https://archive.example/v1\"]",
            "audience = \"https://orders.example\"\nactions = [\"read\"]\n\
             locations = [\"https://other.example\", \"https://orders.example\"]",
            "the action `read`",
        ),
        // Locations and approvals that look valid but would have another effect.
        changed(
            "configuration",
            "[\"https://orders.example/v1\"]",
            "[\"https://orders.example/v1/*\"]",
            "no `*`",
        ),
        with_policy(
            "policy",
            "@id(\"no\") @description(\"d\") @approval(\"no\")\n\
             permit (principal == Workload::ci::\"ci:reports\", action == Action::\"read\", \
             resource == Api::\"orders\");",
            "@approval(\"no\")",
        ),
        // Faults of policies.
        with_policy("policy", "permit (principal", "fleet.cedar:"),
        with_policy(
            "late",
            "@id(\"trial\") @description(\"d\") @mode(\"observe\") @enforce_after(\"9999-12-31\")\n\
             forbid (principal, action == Action::\"read\", resource == Api::\"archive\");",
            "for more than 180 days",
        ),
        Case {
            kind: "configuration",
            config: format!("{GOOD}[policy]\ndirectory = \"nowhere\"\n"),
            says: "nowhere",
            ..good()
        },
    ]
}
