use super::secrets::is_exposed;

#[test]
fn a_secret_file_is_its_owners_alone_or_roots_and_a_groups() {
    for (mode, owned_by_root, exposed) in [
        (0o100_600, false, false),
        (0o100_400, false, false),
        (0o100_640, false, true),
        (0o100_604, false, true),
        (0o100_440, true, false),
        (0o100_460, true, true),
        (0o100_444, true, true),
    ] {
        assert_eq!(is_exposed(mode, owned_by_root), exposed, "{mode:o}");
    }
}
