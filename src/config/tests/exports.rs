//! Tests of `[[export]]`: the sinks and their secrets.

use super::*;

const WEBHOOK: &str = r#"
[[export]]
name = "siem"
format = "ocsf"
to = "webhook"
url = "https://siem.example/x"
secret_file = "siem.secret"
"#;

#[test]
fn a_sink_is_read_with_its_defaults() {
    let config = parse(&format!("{SMALL}{WEBHOOK}"), &sealed()).unwrap();
    let [sink] = config.export.as_slice() else {
        panic!("{:?}", config.export);
    };
    assert_eq!(sink.secret_file, Some("/etc/taskpass/siem.secret".into()));
    let text = uncommented();
    let document = Document::parse(Path::new("example"), &text).unwrap();
    let shown: File = document.read().unwrap();
    let shown = &shown.export[0];
    assert_eq!(
        (shown.timeout_seconds, shown.concurrency, shown.from),
        (sink.timeout_seconds, sink.concurrency, sink.from)
    );
    assert_eq!(
        (shown.free_text, shown.revision),
        (sink.free_text, sink.revision)
    );
}

#[test]
fn each_fault_of_a_sink_is_told_by_its_key() {
    let changed = |from: &str, to: &str| {
        assert!(WEBHOOK.contains(from));
        WEBHOOK.replace(from, to)
    };
    let file = "[[export]]\nname = \"disk\"\nformat = \"ocsf\"\nto = \"file\"\n";
    let stdout = "[[export]]\nname = \"NAME\"\nformat = \"cloudevents\"\nto = \"stdout\"\n";
    for (text, key, problem) in [
        (changed("siem\"", "Si em\""), "export.0.name", "not allowed"),
        (
            format!("{WEBHOOK}{WEBHOOK}"),
            "export.1.name",
            "is used twice",
        ),
        (
            changed("\"https://siem.example/x\"", "\"x\""),
            "export.0.url",
            "is not a URL",
        ),
        (changed("https:", "http:"), "export.0.url", "neither https"),
        (
            changed("//siem", "//user:pa55@siem"),
            "export.0.url",
            "has a user",
        ),
        (changed("/x\"", "/x#y\""), "export.0.url", "has a fragment"),
        (
            changed("url = \"https://siem.example/x\"\n", ""),
            "export.0.to",
            "needs url",
        ),
        (
            changed("secret_file = \"siem.secret\"\n", ""),
            "export.0.to",
            "needs secret_file",
        ),
        (
            format!("{WEBHOOK}path = \"x\"\n"),
            "export.0.path",
            "is not used",
        ),
        (
            format!("{WEBHOOK}timeout_seconds = 31\n"),
            "export.0.timeout_seconds",
            "is 31",
        ),
        (
            format!("{WEBHOOK}concurrency = 0\n"),
            "export.0.concurrency",
            "is 0",
        ),
        (file.to_owned(), "export.0.to", "needs path"),
        (
            format!("{file}path = \"x\"\nurl = \"https://x.example\"\n"),
            "export.0.url",
            "is not used",
        ),
        (
            format!(
                "{file}path = \"x\"\n{}path = \"x\"\n",
                file.replace("disk", "other")
            ),
            "export.1.path",
            "another sink's",
        ),
        (
            stdout.replace("NAME", "a") + &stdout.replace("NAME", "b"),
            "export.1.to",
            "another sink's",
        ),
    ] {
        let errors = parse(&format!("{SMALL}{text}"), &sealed())
            .unwrap_err()
            .to_string();
        assert!(
            errors.contains(key) && errors.contains(problem),
            "{key}: {errors}"
        );
        assert!(!errors.contains("pa55"), "{errors}");
    }
    for bad in [
        "format = \"xml\"",
        "to = \"kafka\"",
        "colour = \"red\"",
        "from = \"noon\"",
    ] {
        let text = format!("{SMALL}[[export]]\nname = \"x\"\n{bad}\n");
        assert!(parse(&text, &sealed()).is_err(), "{bad}");
    }
}

#[test]
fn the_secret_of_a_sink_is_read_from_a_file_of_ours_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("taskpass.toml");
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let file = dir.path().join("siem.secret");
    std::fs::write(&path, format!("{SMALL}{WEBHOOK}")).unwrap();
    let load = |text: &str, mode: u32| {
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        Config::load(&path, &sealed(), Mode::Production).map_err(|errors| errors.to_string())
    };
    let config = load(secret, 0o600).unwrap();
    assert_eq!(config.secrets.webhooks.len(), 1);
    assert!(!format!("{config:?}").contains("MfKQ9r8G"));
    for (text, mode, problem) in [
        (secret, 0o644, "others can read"),
        ("", 0o600, "holds no secret"),
        (
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            0o600,
            "holds a line that is not",
        ),
    ] {
        let told = load(text, mode).unwrap_err();
        assert!(
            told.contains("export.0.secret_file") && told.contains(problem),
            "{told}"
        );
        assert!(!told.contains("MfKQ9r8G"), "{told}");
    }
}
