//! Tests of `[endpoints]`: their URLs and the files of their tokens and authorities.

use super::*;

#[test]
fn an_endpoint_names_no_secret_file_of_the_broker() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &str| {
        std::fs::write(at(name), text).unwrap();
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(0o600)).unwrap();
    };
    let certificate = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    write("ca.pem", &certificate.cert.pem());
    write("sealing", &format!("{SEALING}\n"));
    write("copy", &format!("token: {SEALING}"));
    write("authorization", "Bearer hunter2");
    write("sink", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
    write("token", "a token\n");
    write("empty", " \n");
    std::fs::create_dir(at("policies")).unwrap();
    std::fs::create_dir(at("data")).unwrap();
    write("data/taskpass.sqlite", "rows");
    std::os::unix::fs::symlink(at("sealing"), at("link")).unwrap();
    std::fs::hard_link(at("sealing"), at("hard")).unwrap();
    std::fs::hard_link(at("data/taskpass.sqlite"), at("hard-rows")).unwrap();
    let sealing = at("sealing").display().to_string();
    let home = directory.path().display().to_string();
    std::fs::create_dir(at(".aws")).unwrap();
    write(".aws/credentials", "aws_secret_access_key = hunter2");
    let environment = variables(&[("TASKPASS_SEALING_KEYS_FILE", &sealing), ("HOME", &home)]);
    let load = |key: &str, file: &str| {
        let text = SMALL.replace(
            "[[attestors]]",
            &format!(
                "[ledger.shared_checkpoint]\nurl = \"https://s.example/c\"\n\
                 authorization_file = \"authorization\"\n[[export]]\nname = \"siem\"\n\
                 format = \"ocsf\"\nto = \"webhook\"\nurl = \"https://siem.example\"\n\
                 secret_file = \"sink\"\n[endpoints.cluster]\nurl = \"https://10.0.0.1/jwks\"\n\
                 use = [\"keys\"]\n{key} = \"{file}\"\n[[attestors]]"
            ),
        );
        write("taskpass.toml", &text);
        Config::load(&at("taskpass.toml"), &environment, Mode::Production)
            .map(drop)
            .map_err(|errors| errors.to_string())
    };
    load("ca_file", "ca.pem").unwrap();
    load("token_file", "token").unwrap();
    for (file, says) in [
        ("sealing", "the file of the sealing keys"),
        ("data/../sealing", "the file of the sealing keys"),
        ("link", "the file of the sealing keys"),
        ("hard", "the file of the sealing keys"),
        ("copy", "one of the broker's own secrets"),
        (
            "authorization",
            "the authorization of the shared checkpoint",
        ),
        ("sink", "the secret of a sink"),
        ("data/taskpass.sqlite", "the store"),
        ("hard-rows", "the store"),
        (".aws/credentials", "AWS credentials"),
        ("/proc/self/environ", "a file of the system"),
        ("empty", "is empty or not text"),
        ("nowhere", "cannot be read"),
    ] {
        let errors = load("token_file", file).expect_err(file);
        assert!(errors.contains(says), "{file}: {errors}");
        assert!(
            errors.contains("`endpoints.cluster.token_file`"),
            "{errors}"
        );
        let shown = ["hunter2", SEALING].iter().any(|own| errors.contains(own));
        assert!(!shown, "{errors}");
    }
    for (file, says) in [
        ("sealing", "the file of the sealing keys"),
        ("hard", "the file of the sealing keys"),
        ("token", "a file without certificates"),
        ("nowhere", "cannot be read"),
    ] {
        let errors = load("ca_file", file).expect_err(file);
        assert!(errors.contains(says), "{file}: {errors}");
    }
}

#[test]
fn each_fault_of_an_endpoint_is_told_with_its_line() {
    for (entry, key, says) in [
        (
            "[endpoints.a]\nurl = \"http://a.example\"\nuse = [\"keys\"]",
            "endpoints.a.url",
            "is not a safe URL",
        ),
        (
            "[endpoints.a]\nurl = \"https://a.example\"\nuse = []",
            "endpoints.a.use",
            "is empty",
        ),
        (
            "[endpoints.a]\nurl = \"https://a.example\"\nuse = [\"sts\"]\ntoken_file = \"t\"",
            "endpoints.a.token_file",
            "not used by",
        ),
        (
            "[endpoints.A]\nurl = \"https://a.example\"\nuse = [\"keys\"]",
            "endpoints.A",
            "invalid name",
        ),
        (
            "[endpoints.a]\nurl = \"https://a.example\"\nuse = [\"keys\"]\ntoken = \"hunter2\"",
            "endpoints.a.token",
            "unknown field",
        ),
        (
            "[endpoints.a]\nurl = \"https://a.example\"",
            "endpoints.a",
            "missing field `use`",
        ),
    ] {
        let text = SMALL.replace("[[attestors]]", &format!("{entry}\n[[attestors]]"));
        let errors = parse(&text, &sealed()).unwrap_err();
        let error = errors.iter().next().unwrap();
        assert_eq!(error.key, key, "{error}");
        assert!(error.problem.contains(says), "{error}");
        assert!(error.at.is_some_and(|at| at.line >= 10), "{error}");
        assert!(!errors.to_string().contains("hunter2"));
    }
}
