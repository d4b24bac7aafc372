//! The result as a picture: one self-contained SVG file without scripts. Every text in it is
//! escaped, and each colour has its number next to it.
//!
//! An error arises only if the text cannot be formatted. `cli::coverage` writes the file;
//! [`super::report`] has the data.

use std::fmt::Write as _;

use super::judge::Class;
use super::report::{OTHERS, Report, percent};
use super::tally::{Counts, shortened};

const WIDTH: u64 = 960;
const MARGIN: u64 = 32;
const ROWS: usize = 16;
const ROW_HEIGHT: u64 = 30;
const LABEL_WIDTH: u64 = 380;
const LABEL_CHARS: usize = 54;

/// The colours can be distinguished in grey, too.
fn colour(class: Class) -> &'static str {
    match class {
        Class::Proven => "#1b7f5c",
        Class::OutsideGrant => "#e0a100",
        Class::AfterEnd => "#7b4fa3",
        Class::Unproven => "#c0392b",
        Class::Unjudged => "#9aa3ad",
    }
}

/// Escapes text for use between tags or in an attribute. Characters that XML cannot contain are
/// replaced.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in shortened(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// Shortens a long name in its middle, because its end is more informative.
fn label(text: &str) -> String {
    let text = shortened(text);
    let length = text.chars().count();
    if length <= LABEL_CHARS {
        return text;
    }
    let half = LABEL_CHARS / 2;
    let begin: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(length - half).collect();
    format!("{begin}…{end}")
}

/// Draws the picture as SVG.
pub(crate) fn draw(report: &Report<'_>) -> Result<String, std::fmt::Error> {
    let mut groups = report.tally.worst(ROWS);
    let others = report.tally.besides(&groups);
    if others.all() > 0 {
        groups.push((OTHERS, others));
    }
    let height = 250 + ROW_HEIGHT * groups.len() as u64 + 60;
    let mut svg = String::new();
    write(&mut svg, report, &groups, height)?;
    Ok(svg)
}

fn write(
    svg: &mut String,
    report: &Report<'_>,
    groups: &[(&str, Counts)],
    height: u64,
) -> std::fmt::Result {
    let counts = &report.tally.counts;
    let sentence = escaped(&report.sentence());
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{sentence}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"14\" fill=\"#1d232a\">"
    )?;
    writeln!(svg, "<title>Coverage</title><desc>{sentence}</desc>")?;
    writeln!(
        svg,
        "<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"
    )?;
    text(
        svg,
        MARGIN,
        48,
        "font-size=\"22\" font-weight=\"600\"",
        "Which actions were gated?",
    )?;
    text(svg, MARGIN, 76, "", &report.sentence())?;
    bar(svg, (MARGIN, 96), (WIDTH - 2 * MARGIN, 40), counts)?;
    let column = (WIDTH - 2 * MARGIN) / Class::ALL.len() as u64;
    for (at, class) in (0..).zip(Class::ALL) {
        let x = MARGIN + at * column;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"152\" width=\"14\" height=\"14\" rx=\"3\" fill=\"{}\"/>",
            colour(class)
        )?;
        text(svg, x + 22, 164, "", class.title())?;
        let count = counts.of(class);
        let number = match class {
            Class::Unjudged => count.to_string(),
            _ => format!("{count} ({})", percent(count, counts.judged())),
        };
        text(svg, x + 22, 186, "font-weight=\"600\"", &number)?;
    }
    let by = format!("by {}, the worst first", report.tally.by.name());
    text(svg, MARGIN, 230, "fill=\"#5b6570\"", &by)?;
    for (at, (name, counts)) in (0..).zip(groups) {
        let y = 244 + at * ROW_HEIGHT;
        writeln!(svg, "<g><title>{}</title>", escaped(name))?;
        text(svg, MARGIN, y + 15, "font-size=\"12\"", &label(name))?;
        let x = MARGIN + LABEL_WIDTH;
        bar(svg, (x, y), (WIDTH - MARGIN - x - 110, 20), counts)?;
        let number = format!("{} of {}", counts.of(Class::Proven), counts.all());
        text(
            svg,
            WIDTH - MARGIN - 100,
            y + 15,
            "font-size=\"12\"",
            &number,
        )?;
        svg.push_str("</g>\n");
    }
    let decisions = report.decisions;
    let foot = format!(
        "{} at {} entries, root {}",
        decisions.origin(),
        decisions.size(),
        decisions.root()
    );
    text(
        svg,
        MARGIN,
        height - 24,
        "font-size=\"11\" fill=\"#5b6570\"",
        &foot,
    )?;
    svg.push_str("</svg>\n");
    Ok(())
}

fn text(svg: &mut String, x: u64, y: u64, style: &str, words: &str) -> std::fmt::Result {
    let words = escaped(words);
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\" {style}>{words}</text>")
}

/// Draws the classes side by side, each as long as its share. Every class that occurs is visible.
fn bar(
    svg: &mut String,
    (mut x, y): (u64, u64),
    (width, height): (u64, u64),
    counts: &Counts,
) -> std::fmt::Result {
    const SEEN: u64 = 2;
    let all = counts.all();
    writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"#eef1f4\"/>"
    )?;
    let there = Class::ALL.into_iter().filter(|class| counts.of(*class) > 0);
    let spare = width.saturating_sub(SEEN * there.clone().count() as u64);
    for class in there {
        let part = u128::from(counts.of(class)) * u128::from(spare) / u128::from(all.max(1));
        let length = SEEN + u64::try_from(part).unwrap_or(spare);
        let fill = colour(class);
        let told = format!("{}: {}", class.title(), counts.of(class));
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{length}\" height=\"{height}\" fill=\"{fill}\"><title>{told}</title></rect>"
        )?;
        x += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_record_says_cannot_leave_its_text() {
        assert_eq!(
            escaped("</text><script>alert('x')</script>\"&\u{1}\u{ffff}"),
            "&lt;/text&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn a_long_name_keeps_its_begin_and_its_end() {
        let long = format!("arn:{}:tp-1", "x".repeat(100));
        let short = label(&long);
        assert!(
            short.starts_with("arn:") && short.ends_with(":tp-1"),
            "{short}"
        );
        assert!(short.chars().count() <= LABEL_CHARS + 1);
    }
}
