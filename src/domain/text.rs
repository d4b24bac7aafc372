//! Text that callers write for people: purposes and reasons.
//!
//! Terminals, tables and the tools behind sinks display it. Characters that move the cursor, change
//! the reading direction or are invisible would let a caller write one text and readers see
//! another. Such text is refused on input, so readers need not clean it.

/// The reason why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It has more bytes than permitted.
    #[error("at most {0} bytes")]
    TooLong(usize),
    /// It has a character that is invisible or changes how the text is displayed.
    #[error(
        "character {position} is U+{code:04X}, which is invisible or changes how text is shown: remove it"
    )]
    Unprintable {
        /// Position of the character, from 1.
        position: usize,
        /// Code point of the character.
        code: u32,
    },
}

/// Checks a text of at most `max_bytes`. Line feeds and tabs are permitted.
pub fn check_text(text: &str, max_bytes: usize) -> Result<(), TextError> {
    if text.len() > max_bytes {
        return Err(TextError::TooLong(max_bytes));
    }
    let refused = |c: &char| is_unprintable(*c) && !matches!(c, '\n' | '\t');
    let found = text.chars().enumerate().find(|(_, c)| refused(c));
    found.map_or(Ok(()), |(index, c)| {
        Err(TextError::Unprintable {
            position: index + 1,
            code: u32::from(c),
        })
    })
}

/// Whether a character moves the cursor, changes the direction of text, separates lines or is
/// invisible: control characters (C0, DEL and C1) and Unicode's formatting characters.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            // Zero-width characters and direction marks; then separators and embeddings.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            // Tags.
            | '\u{e0000}'..='\u{e007f}')
}

/// Replaces unprintable characters, line breaks included.
#[must_use]
pub fn printable(text: &str) -> String {
    let shown = |c: char| if is_unprintable(c) { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// Like [`printable`], but keeps line breaks.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    let shown = |c: char| {
        if is_unprintable(c) && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        let lines = printable_lines("a\n\u{1b}]0;b\u{7}\r\u{202e}c\n");
        assert_eq!(lines, "a\n\u{fffd}]0;b\u{fffd}\u{fffd}\u{fffd}c\n");
    }

    #[test]
    fn text_that_shows_itself_is_taken() {
        for text in [
            "",
            "monthly report, 1\u{a0}200 rows\n\tfor Zo\u{eb}",
            "\u{645}\u{631}\u{62d}\u{628}\u{627}",
            "\u{65e5}\u{672c}\u{8a9e} \u{1f680}\u{fe0f}",
        ] {
            assert_eq!(check_text(text, 64), Ok(()), "{text}");
        }
        assert_eq!(check_text("four", 3), Err(TextError::TooLong(3)));
    }

    #[test]
    fn escapes_and_bidirectional_and_zero_width_characters_are_refused_by_place() {
        for c in [
            '\u{0}',
            '\u{7}',
            '\r',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{202e}',
            '\u{2066}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            let refused = check_text(&format!("pay {c}roll"), 64).unwrap_err();
            let code = u32::from(c);
            assert_eq!(refused, TextError::Unprintable { position: 5, code });
            assert!(refused.to_string().contains(&format!("U+{code:04X}")));
            assert!(!refused.to_string().contains(c), "it is not quoted");
        }
    }
}
