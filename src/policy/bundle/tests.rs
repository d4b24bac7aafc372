use super::*;

fn parse_text(text: &str) -> Result<Vec<NamedPolicy>, Vec<PolicyProblem>> {
    let file = PolicyFile {
        name: "a.cedar".into(),
        text: text.into(),
    };
    Ok(parse(&[file])?.named)
}

#[test]
fn a_policy_goes_by_its_id_and_knows_its_place() {
    let text = "// first\n@id(\"one\")\n@description(\"d\")\npermit (principal, action, resource);\n\n  @id(\"two\") @description(\"d\") @max_ttl(\"60\")\npermit (principal, action, resource);\n";
    let found = parse_text(text).unwrap();
    assert_eq!(found[0].policy.id().to_string(), "one");
    assert_eq!(found[0].offset, text.find("@id(\"one\")").unwrap());
    assert_eq!(found[1].offset, text.find("@id(\"two\")").unwrap());
    assert_eq!(found[1].obligations.max_ttl_seconds, Some(60));
}

#[test]
fn what_is_commented_out_is_not_the_place_of_a_policy() {
    let policy = |id: &str| {
        format!(
            "@id(\"{id}\") @description(\"see https://x\\\" //\") permit (principal, action, resource);"
        )
    };
    let (one, two) = (policy("one"), policy("two"));
    // On a line of its own, after another policy, and not only after a `//` within a string.
    let text = format!(
        "// {two}\n{one} // {two}\n//{two}\n{} {two}",
        policy("three")
    );
    let found = parse_text(&text).unwrap();
    let places: Vec<(&str, usize)> = found
        .iter()
        .map(|own| (own.id.as_str(), own.offset))
        .collect();
    let one_at = text.find(&one).unwrap();
    let three_at = text.find("@id(\"three\")").unwrap();
    let two_at = text.rfind(&two).unwrap();
    assert_eq!(
        places,
        [("one", one_at), ("three", three_at), ("two", two_at)]
    );
}

#[test]
fn missing_double_and_unknown_annotations_fail_the_load() {
    let with = |annotations: &str| {
        let text = format!("\n{annotations} permit (principal, action, resource);");
        parse_text(&text).unwrap_err().remove(0)
    };
    for (annotations, says) in [
        ("", "no @id"),
        ("@description(\"d\")", "no @id"),
        ("@id(\"\") @description(\"d\")", "not a name"),
        ("@id(\"A b\") @description(\"d\")", "not a name"),
        ("@id @description(\"d\")", "not a name"),
        ("@id(\"a\")", "no @description"),
        ("@id(\"a\") @description(\" \")", "no @description"),
        (
            "@id(\"a\") @description(\"d\") @max_tll(\"60\")",
            "unknown annotation @max_tll",
        ),
        ("@id(\"a\") @description(\"d\") @max_ttl(\"0\")", "@max_ttl"),
        (
            "@id(\"a\") @description(\"d\") @max_ttl(\"+60\")",
            "@max_ttl",
        ),
        (
            "@id(\"a\") @description(\"d\") @max_ttl(\"1m\")",
            "@max_ttl",
        ),
        (
            "@id(\"a\") @description(\"d\") @max_ttl(\"43201\")",
            "@max_ttl",
        ),
        ("@id(\"a\") @description(\"d\") @max_ttl", "@max_ttl"),
        ("@id(\"a\") @description(\"d\") @approval", "@approval"),
        (
            "@id(\"a\") @description(\"d\") @approval(\"two people\")",
            "@approval",
        ),
        (
            "@id(\"a\") @description(\"d\") @approval(\"no\")",
            "@approval(\"no\") would ask for approval",
        ),
        (
            "@id(\"a\") @description(\"d\") @mode(\"observe\")",
            "without @enforce_after",
        ),
        (
            "@id(\"a\") @description(\"d\") @enforce_after(\"2026-12-31\")",
            "without @mode",
        ),
        (
            "@id(\"a\") @description(\"d\") @mode(\"Observe\") @enforce_after(\"2026-12-31\")",
            "no @mode",
        ),
        (
            "@id(\"a\") @description(\"d\") @mode(\"enforce\") @enforce_after(\"2026-12-31\")",
            "no @mode",
        ),
        ("@id(\"a\") @description(\"d\") @mode", "no @mode"),
    ] {
        let problem = with(annotations);
        assert!(problem.message.contains(says), "{annotations}: {problem}");
        assert_eq!((problem.file.as_str(), problem.line), ("a.cedar", 2));
        assert!(!problem.remedy.is_empty());
    }
}

#[test]
fn the_day_on_which_observing_ends_is_a_day_of_the_calendar() {
    let until = |date: &str| {
        let text = format!(
            "@id(\"a\") @description(\"d\") @mode(\"observe\") @enforce_after(\"{date}\") permit (principal, action, resource);"
        );
        parse_text(&text).map(|mut found| found.remove(0).observed_until)
    };
    // The named day is the last day of observing: enforcement starts at the first instant of
    // the next.
    let end = "2027-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(until("2026-12-31").unwrap(), Some(end));
    assert_eq!(until("9999-12-31").unwrap(), Some(Timestamp::MAX));
    for bad in [
        "",
        "never",
        "2026-02-30",
        "2026-13-01",
        "2026-1-1",
        "26-12-31",
        "2026-12-31 ",
        "2026-12-31T00:00:00Z",
        "2026/12/31",
        "+026-12-31",
        "２026-12-31",
    ] {
        let problem = until(bad).unwrap_err().remove(0);
        assert!(
            problem.message.contains("is not a date"),
            "{bad}: {problem}"
        );
    }
}

#[test]
fn an_id_stands_once_in_all_files_together() {
    let file = |name: &str| PolicyFile {
        name: name.into(),
        text: "@id(\"x\") @description(\"d\") permit (principal, action, resource);".into(),
    };
    let problems = parse(&[file("a.cedar"), file("b.cedar")]).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().contains("first in a.cedar"));
}

#[test]
fn templates_and_obligations_of_a_forbid_are_refused() {
    let template =
        "@id(\"a\") @description(\"d\") permit (principal == ?principal, action, resource);";
    assert!(
        parse_text(template).unwrap_err()[0]
            .message
            .contains("templates")
    );
    let forbid =
        "@id(\"a\") @description(\"d\") @max_ttl(\"6\") forbid (principal, action, resource);";
    assert!(
        parse_text(forbid).unwrap_err()[0]
            .message
            .contains("forbid")
    );
}

#[test]
fn a_syntax_error_is_told_with_its_line() {
    let problems = parse_text("@id(\"a\")\npermit (principal, action resource);").unwrap_err();
    assert_eq!(problems[0].line, 2);
}

#[test]
fn a_directory_without_policies_is_a_problem() {
    let place = tempfile::tempdir().unwrap();
    assert!(read_directory(place.path()).is_err());
    std::fs::write(place.path().join("b.cedar"), "").unwrap();
    std::fs::write(place.path().join("a.cedar"), "").unwrap();
    std::fs::write(place.path().join("notes.md"), "").unwrap();
    let names: Vec<String> = read_directory(place.path())
        .unwrap()
        .into_iter()
        .map(|file| file.name)
        .collect();
    assert_eq!(names, ["a.cedar", "b.cedar"]);
    assert!(read_directory(&place.path().join("nowhere")).is_err());
}

#[test]
fn policies_without_tests_are_told_where_tests_belong() {
    let place = tempfile::tempdir().unwrap();
    let none = read_tests(place.path()).unwrap_err().to_string();
    assert!(
        none.contains("there are no tests of these policies"),
        "{none}"
    );
    assert!(none.contains("write tests into it"), "{none}");
    std::fs::create_dir(place.path().join("tests")).unwrap();
    let empty = read_tests(place.path()).unwrap_err().to_string();
    assert!(empty.contains("no file that ends in .toml"), "{empty}");
    assert!(!format!("{none}{empty}").contains("holds the policies"));
}
