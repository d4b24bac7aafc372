use proptest::prelude::*;

use super::super::testing::TestLogKey;
use super::*;

const TEXT: &str = "This is an example message.\n";
const VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const LINE: &str = "\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

fn published() -> String {
    format!("{TEXT}\n{LINE}")
}

fn key(name: &str, seed: u8) -> VerifierKey {
    TestLogKey::new(name, seed).key
}

fn line(name: &str, seed: u8, text: &str) -> String {
    TestLogKey::new(name, seed).line(text)
}

#[test]
fn the_published_note_verifies_under_the_published_key() {
    let key: VerifierKey = VKEY.parse().unwrap();
    assert_eq!(key.name(), "example.com/foo");
    assert_eq!(key.id(), [0x53, 0x0d, 0x90, 0x3a]);
    assert_eq!(key.to_string(), VKEY);
    let note = Note::parse(published().as_bytes()).unwrap();
    let verified = note.verify(std::slice::from_ref(&key)).unwrap();
    assert_eq!(verified.text(), TEXT);
    assert_eq!(verified.signers(), std::slice::from_ref(&key));
    let signature = &note.signatures()[0].signature;
    let line = note_signature_line(&key, signature).unwrap();
    assert_eq!(line, LINE);
    assert_eq!(sign_note(TEXT, &[line]).unwrap(), published());
    assert_eq!(
        note_signature_line(&key, &signature[1..]),
        Err(KeyError::SignatureLength(63))
    );
}

#[test]
fn malformed_verifier_keys_say_what_is_wrong() {
    let parse = |text: &str| text.parse::<VerifierKey>().unwrap_err();
    assert_eq!(parse(""), KeyError::Malformed);
    assert_eq!(parse("example.com/foo+530d903a"), KeyError::Malformed);
    assert_eq!(
        parse(&VKEY.replace("530d903a", "530d903b")),
        KeyError::IdMismatch
    );
    assert_eq!(
        parse(&VKEY.replace("530d903a", "530D903A")),
        KeyError::IdMismatch
    );
    assert_eq!(parse(&VKEY.replace("/foo", "/bar")), KeyError::IdMismatch);
    assert_eq!(parse(&VKEY.replace("/foo", " foo")), KeyError::Name);
    assert_eq!(parse(&VKEY.replace("example.com/foo", "")), KeyError::Name);
    assert_eq!(parse(&format!("{VKEY}=")), KeyError::Malformed);
    let with = |key: &[u8]| parse(&format!("a+00000000+{}", STANDARD.encode(key)));
    assert_eq!(with(&[4; 33]), KeyError::UnsupportedType(4));
    assert_eq!(with(&[1; 32]), KeyError::KeyLength(31));
    assert_eq!(with(&[]), KeyError::Malformed);
    let mut small_order = [0; 33];
    small_order[0] = ED25519_TYPE;
    assert_eq!(with(&small_order), KeyError::SmallOrder);
    small_order[1] = 1;
    assert_eq!(with(&small_order), KeyError::SmallOrder);
    VerifierKey::new(&"n".repeat(255), [0; 32]).unwrap();
    assert_eq!(
        VerifierKey::new(&"n".repeat(256), [0; 32]),
        Err(KeyError::Name)
    );
    for name in ["", "a b", "a+b", "a\nb", "a\u{2003}b", "a\u{7f}"] {
        assert_eq!(VerifierKey::new(name, [0; 32]), Err(KeyError::Name));
    }
}

#[test]
fn a_changed_text_or_signature_is_a_bad_signature() {
    let key: VerifierKey = VKEY.parse().unwrap();
    for changed in [
        published().replace("example message", "exemple message"),
        published().replace("yaQM=", "yaQI="),
        published().replace("Uw2QOkn8", "Uw2QOkn9"),
        // The line of a known key must have an Ed25519 signature of the exact length.
        format!("{TEXT}\n\u{2014} example.com/foo Uw2QOgA=\n"),
    ] {
        let note = Note::parse(changed.as_bytes()).unwrap();
        assert_eq!(
            note.verify(std::slice::from_ref(&key)),
            Err(NoteError::BadSignature("example.com/foo".to_owned()))
        );
    }
}

#[test]
fn unknown_keys_are_ignored_but_alone_are_not_enough() {
    let known = key("log.example", 1);
    let unknown = line("witness.example", 2, TEXT);
    let note = Note::parse(format!("{TEXT}\n{unknown}").as_bytes()).unwrap();
    assert_eq!(
        note.verify(std::slice::from_ref(&known)),
        Err(NoteError::NoKnownSigner)
    );
    assert_eq!(note.verify(&[]), Err(NoteError::NoKnownSigner));
    // The same name with another id is another key.
    let impostor = line("log.example", 3, TEXT);
    let good = line("log.example", 1, TEXT);
    let note = sign_note(TEXT, &[&impostor, &unknown, &good, &good]).unwrap();
    let verified = Note::parse(note.as_bytes())
        .unwrap()
        .verify(std::slice::from_ref(&known))
        .unwrap();
    assert_eq!(verified.signers(), std::slice::from_ref(&known));
}

#[test]
fn one_bad_signature_of_a_known_key_spoils_a_good_one() {
    let first = key("log.example", 1);
    let second = key("log.example", 2);
    let lines = [
        line("log.example", 1, TEXT),
        line("log.example", 2, "Another text.\n"),
    ];
    let note = sign_note(TEXT, &lines).unwrap();
    let note = Note::parse(note.as_bytes()).unwrap();
    note.verify(std::slice::from_ref(&first)).unwrap();
    assert_eq!(
        note.verify(&[first, second]),
        Err(NoteError::BadSignature("log.example".to_owned()))
    );
}

#[test]
fn keys_that_cannot_be_told_apart_are_refused() {
    let key = key("log.example", 1);
    let mut twin = key.clone();
    twin.public_key[0] ^= 1;
    let note = sign_note(TEXT, &[line("log.example", 1, TEXT)]).unwrap();
    let note = Note::parse(note.as_bytes()).unwrap();
    note.verify(&[key.clone(), key.clone()]).unwrap();
    assert_eq!(
        note.verify(&[key, twin]),
        Err(NoteError::AmbiguousKey("log.example".to_owned()))
    );
}

#[test]
fn the_last_empty_line_separates_text_and_signatures() {
    let text = "one\n\n\ntwo\n\n";
    let note = sign_note(text, &[line("log.example", 1, text)]).unwrap();
    let key = key("log.example", 1);
    let verified = Note::parse(note.as_bytes())
        .unwrap()
        .verify(&[key])
        .unwrap();
    assert_eq!(verified.text(), text);
    // Refuses a text without a final newline, and lines that contain an additional text.
    sign_note("one", &[line("log.example", 1, "one")]).unwrap_err();
    let smuggled = format!("more\n\n{}", line("log.example", 1, text));
    sign_note(text, &[smuggled]).unwrap_err();
    sign_note::<&str>(text, &[]).unwrap_err();
}

#[test]
fn malformed_notes_are_refused() {
    let parse = |note: &str| Note::parse(note.as_bytes()).unwrap_err();
    assert_eq!(parse(""), NoteError::Malformed);
    assert_eq!(parse(TEXT), NoteError::Malformed);
    assert_eq!(parse(&format!("{TEXT}{LINE}")), NoteError::Malformed);
    assert_eq!(parse(&format!("{TEXT}\n")), NoteError::Malformed);
    assert_eq!(parse(published().trim_end()), NoteError::Malformed);
    assert_eq!(parse(&format!("{}\n", published())), NoteError::Malformed);
    assert_eq!(
        parse(&published().replace('\n', "\r\n")),
        NoteError::NotText
    );
    assert_eq!(parse(&published().replace(' ', "\t")), NoteError::NotText);
    assert_eq!(
        parse(&published().replace("is", "\u{9b}")),
        NoteError::NotText
    );
    assert_eq!(Note::parse(b"\xff\n\n"), Err(NoteError::NotText));
    for bad in [
        LINE.replace('\u{2014}', "-"),
        LINE.replace("\u{2014} ", "\u{2014}"),
        LINE.replace("example.com/foo", ""),
        LINE.replace("example.com/foo", "a+b"),
        LINE.replace("example.com/foo", "a\u{2003}b"),
        LINE.replace("yaQM=", "yaQM"),
        LINE.replace("yaQM=\n", "yaQM= \n"),
        LINE.replace("Uw2Q", "Uw2_"),
        "\u{2014} example.com/foo Uw2QOg==\n".to_owned(),
        "\u{2014} example.com/foo\n".to_owned(),
    ] {
        assert_eq!(
            parse(&format!("{TEXT}\n{LINE}{bad}")),
            NoteError::MalformedSignature(2),
            "{bad}"
        );
    }
}

#[test]
fn notes_are_bounded_in_size_and_signatures() {
    let most = format!("{TEXT}\n{}", LINE.repeat(MAX_NOTE_SIGNATURES));
    Note::parse(most.as_bytes()).unwrap();
    assert_eq!(
        Note::parse(format!("{most}{LINE}").as_bytes()),
        Err(NoteError::TooManySignatures)
    );
    let filler = MAX_NOTE_BYTES - LINE.len() - 2;
    let largest = format!("{}\n\n{LINE}", "x".repeat(filler));
    assert_eq!(largest.len(), MAX_NOTE_BYTES);
    Note::parse(largest.as_bytes()).unwrap();
    assert_eq!(
        Note::parse(format!("x{largest}").as_bytes()),
        Err(NoteError::TooLong)
    );
}

proptest! {
    #[test]
    fn any_bytes_are_a_note_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~\u{2014}\n+=]{0,120}",
        at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let key: VerifierKey = VKEY.parse().unwrap();
        let mut changed = published().into_bytes();
        let at = at.index(changed.len());
        let same = changed[at] == byte;
        changed[at] = byte;
        for note in [bytes, text.into_bytes(), changed] {
            if let Ok(note) = Note::parse(&note) {
                let verified = note.verify(std::slice::from_ref(&key)).is_ok();
                prop_assert!(!verified || same);
            }
        }
    }

    #[test]
    fn any_text_is_a_verifier_key_or_an_error(text in "[a-z]{0,3}[+]?[0-9a-f]{0,9}[+]?\\PC{0,50}") {
        if let Ok(key) = text.parse::<VerifierKey>() {
            prop_assert_eq!(key.to_string(), text);
        }
    }
}
