//! Reads records one at a time from files of any size: lines, or the elements of a JSON array.
//!
//! Only one record is in memory. The length of a record and the growth of a compressed input are
//! limited. If a line is too long or not JSON, only that line is lost. If an array breaks off, the
//! rest of it is lost, because the start of its next element is unknown; that is reported as a
//! problem of the input.
//!
//! [`each`] returns an error if the input cannot be read to its end. [`super::Run`] reports it and
//! goes on with the next input; the pieces go to [`super::cloudtrail`] or [`super::mapped`].

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The longest record, in bytes. A record of CloudTrail has at most 256 KiB.
pub(crate) const MAX_RECORD_BYTES: u64 = 1024 * 1024;

/// Every compressed input may grow to this many bytes, and larger inputs by this factor. Logs grow
/// 10 to 50 times; the limit of the format is about 1,030.
const FREE_BYTES: u64 = 16 * 1024 * 1024;
const MAX_RATIO: u64 = 250;

const BUFFER_BYTES: usize = 64 * 1024;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Some programs write this mark at the beginning of a text.
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Members of a `CloudTrail` event that a list of events does not have.
const OF_AN_EVENT: [&str; 3] = ["eventName", "eventSource", "userIdentity"];

/// The layout of records in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One record on each line. An input that begins with `[` is read as an array.
    Lines,
    /// Documents of the form `{"Records": […]}`, an array of records, or single records in
    /// sequence.
    Documents,
}

/// One record, or the reason for its absence.
#[derive(Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// The bytes of the record.
    Record(&'a [u8]),
    /// The record exceeds the limit.
    TooLong,
}

/// Opens an input: a file, or standard input for `-`. Input compressed by gzip is decompressed.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return decompressed(io::stdin().lock());
    }
    let file = File::open(path)?;
    let found = file.metadata()?;
    let compressed = path
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gz"));
    if compressed && found.is_file() && found.len() == 0 {
        return Err(io::Error::other(
            "the file is empty, although its name says that it is compressed",
        ));
    }
    decompressed(file)
}

fn decompressed(input: impl Read + 'static) -> io::Result<Box<dyn BufRead>> {
    let read = Rc::new(Cell::new(0));
    let mut input = Counted {
        input,
        bytes: Rc::clone(&read),
    };
    let mut begin = Vec::new();
    input
        .by_ref()
        .take(GZIP.len() as u64)
        .read_to_end(&mut begin)?;
    let compressed = begin == GZIP;
    let whole = Cursor::new(begin).chain(input);
    let whole = BufReader::with_capacity(BUFFER_BYTES, whole);
    if !compressed {
        return Ok(Box::new(whole));
    }
    let grown = Grown {
        input: MultiGzDecoder::new(whole),
        compressed: read,
        bytes: 0,
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, grown)))
}

struct Counted<R> {
    input: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

/// Decompressed bytes, as long as their number is plausible.
struct Grown<R> {
    input: R,
    compressed: Rc<Cell<u64>>,
    bytes: u64,
}

impl<R: Read> Read for Grown<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.bytes += read as u64;
        let most = FREE_BYTES + MAX_RATIO * self.compressed.get();
        if self.bytes > most {
            return Err(io::Error::other(format!(
                "it is compressed to less than a {MAX_RATIO}th, as no log is"
            )));
        }
        Ok(read)
    }
}

/// Passes every record to `take`. The error says why the input could not be read to its end.
pub(crate) fn each(
    mut input: &mut dyn BufRead,
    shape: Shape,
    take: &mut dyn FnMut(Piece<'_>),
) -> Result<(), String> {
    let mut begin = Vec::new();
    Read::by_ref(&mut input)
        .take(BYTE_ORDER_MARK.len() as u64)
        .read_to_end(&mut begin)
        .map_err(|error| error.to_string())?;
    if begin == BYTE_ORDER_MARK {
        begin.clear();
    }
    let input = &mut Cursor::new(begin).chain(input);
    let begin = skip_space(input).map_err(|error| error.to_string())?;
    match (shape, begin) {
        (_, None) => Ok(()),
        (Shape::Lines, Some(byte)) if byte != b'[' => {
            each_line(input, take).map_err(|error| error.to_string())
        }
        _ => each_document(input, take),
    }
}

fn each_line(mut input: &mut dyn BufRead, take: &mut dyn FnMut(Piece<'_>)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = Read::by_ref(&mut input)
            .take(MAX_RECORD_BYTES + 1)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let ended = line.last() == Some(&b'\n');
        if !ended && read as u64 > MAX_RECORD_BYTES {
            input.skip_until(b'\n')?;
            take(Piece::TooLong);
            continue;
        }
        if line.iter().any(|byte| !byte.is_ascii_whitespace()) {
            take(Piece::Record(&line));
        }
    }
}

fn skip_space(input: &mut dyn BufRead) -> io::Result<Option<u8>> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let space = |byte: &u8| byte.is_ascii_whitespace();
        let at = buffer.iter().position(|byte| !space(byte));
        let byte = at.and_then(|at| buffer.get(at)).copied();
        let length = buffer.len();
        input.consume(at.unwrap_or(length));
        if byte.is_some() {
            return Ok(byte);
        }
    }
}

fn each_document(input: &mut dyn BufRead, take: &mut dyn FnMut(Piece<'_>)) -> Result<(), String> {
    let budget = Rc::new(Cell::new(MAX_RECORD_BYTES));
    while let Some(byte) = skip_space(input).map_err(|error| error.to_string())? {
        if byte != b'{' && byte != b'[' {
            return Err("an object or an array must begin here, but neither does".into());
        }
        budget.set(MAX_RECORD_BYTES);
        let metered = Metered {
            input: &mut *input,
            budget: Rc::clone(&budget),
        };
        // Reads byte by byte, and not beyond the end of the object or array.
        let mut deserializer = serde_json::Deserializer::from_reader(metered);
        let document = Document {
            budget: &budget,
            take: &mut *take,
        };
        document.deserialize(&mut deserializer).map_err(|error| {
            if error.is_eof() {
                return "the input ends in the middle of a record".to_owned();
            }
            error.to_string()
        })?;
    }
    Ok(())
}

/// A reader that fails when one record exceeds its bytes.
struct Metered<'a> {
    input: &'a mut dyn BufRead,
    budget: Rc<Cell<u64>>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.budget.get().checked_sub(buffer.len() as u64) else {
            return Err(io::Error::other(format!(
                "a record has more than {MAX_RECORD_BYTES} bytes"
            )));
        };
        self.budget.set(left);
        self.input.read(buffer)
    }
}

/// A document: an array of records, an object with such an array, or a single record.
struct Document<'a> {
    budget: &'a Cell<u64>,
    take: &'a mut dyn FnMut(Piece<'_>),
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        self.budget.set(MAX_RECORD_BYTES);
        while let Some(element) = elements.next_element::<Box<RawValue>>()? {
            (self.take)(Piece::Record(element.get().as_bytes()));
            self.budget.set(MAX_RECORD_BYTES);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let (mut is_list, mut is_event) = (false, false);
        // Serializes the members again, in case the object is a record.
        let mut record = String::from("{");
        while let Some(name) = members.next_key::<String>()? {
            if name == "Records" {
                is_list = true;
                members.next_value_seed(Document {
                    budget: self.budget,
                    take: &mut *self.take,
                })?;
                continue;
            }
            is_event |= OF_AN_EVENT.contains(&name.as_str());
            let value = members.next_value::<Box<RawValue>>()?;
            if is_list {
                continue;
            }
            if record.len() > 1 {
                record.push(',');
            }
            record.push_str(&serde_json::to_string(&name).map_err(de::Error::custom)?);
            record.push(':');
            record.push_str(value.get());
        }
        if is_list && is_event {
            return Err(de::Error::custom(
                "the object is both a list of records and a record",
            ));
        }
        if !is_list {
            record.push('}');
            (self.take)(Piece::Record(record.as_bytes()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn read(input: impl Read + 'static, shape: Shape) -> (Vec<String>, Result<(), String>) {
        let mut seen = Vec::new();
        let mut input = decompressed(input).unwrap();
        let read = each(&mut *input, shape, &mut |piece| {
            seen.push(match piece {
                Piece::Record(bytes) => String::from_utf8_lossy(bytes).trim().to_owned(),
                Piece::TooLong => "too long".to_owned(),
            });
        });
        (seen, read)
    }

    fn text(input: &str, shape: Shape) -> (Vec<String>, Result<(), String>) {
        read(Cursor::new(input.to_owned().into_bytes()), shape)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn records_are_found_in_every_form_that_files_have() {
        let both = vec![r#"{"a":1}"#.to_owned(), r#"{"b":[2]}"#.to_owned()];
        for (input, shape) in [
            (r#" {"Records": [{"a":1}, {"b":[2]}]} "#, Shape::Documents),
            (
                r#"{"x":{},"Records":[{"a":1},{"b":[2]}]}"#,
                Shape::Documents,
            ),
            (
                "{\"Records\":[{\"a\":1}]}\n{\"Records\":[{\"b\":[2]}]}",
                Shape::Documents,
            ),
            ("{\"a\":1}\n{\"b\":[2]}\n", Shape::Documents),
            (r#"[{"a":1},{"b":[2]}]"#, Shape::Documents),
            (r#"[{"a":1},{"b":[2]}]"#, Shape::Lines),
            ("\n{\"a\":1}\r\n\n  {\"b\":[2]}", Shape::Lines),
        ] {
            assert_eq!(text(input, shape), (both.clone(), Ok(())), "{input}");
            let compressed = gzip(input.as_bytes());
            let twice = [compressed, gzip(b" ")].concat();
            assert_eq!(read(Cursor::new(twice), shape), (both.clone(), Ok(())));
        }
        for shape in [Shape::Lines, Shape::Documents] {
            assert_eq!(text(" \n ", shape), (Vec::new(), Ok(())));
        }
    }

    #[test]
    fn a_line_that_is_too_long_costs_itself_alone() {
        let long = "x".repeat(usize::try_from(MAX_RECORD_BYTES).unwrap() * 3);
        let (seen, read) = text(&format!("{{}}\n{long}\n{{\"a\":1}}\n"), Shape::Lines);
        assert_eq!(seen, ["{}", "too long", r#"{"a":1}"#]);
        assert_eq!(read, Ok(()));
        let limit = "y".repeat(usize::try_from(MAX_RECORD_BYTES).unwrap() - 1);
        assert_eq!(text(&format!("{limit}\nz"), Shape::Lines).0, [&limit, "z"]);
    }

    #[test]
    fn an_endless_line_is_skipped_without_being_kept() {
        let endless = io::repeat(b'x').take(64 * MAX_RECORD_BYTES);
        let (seen, read) = read(endless, Shape::Lines);
        assert_eq!((seen, read), (vec!["too long".to_owned()], Ok(())));
    }

    #[test]
    fn an_array_that_breaks_off_is_told_after_what_came_before() {
        for bad in [
            r#"{"Records":[{"a":1},{"b""#,
            r#"{"Records":[{"a":1}"#,
            r#"{"Records":[{"a":1}]"#,
            r#"{"Records":[{"a":1},{]}"#,
            r#"{"Records":[{"a":1},]}"#,
            r#"{"Records":[{"a":1}]} x"#,
        ] {
            let (seen, read) = text(bad, Shape::Documents);
            assert_eq!(seen, [r#"{"a":1}"#], "{bad}");
            assert!(read.is_err(), "{bad}");
        }
        for bad in ["{", "null", "12", r#"{"Records":7}"#, "\u{feff}\u{feff}{}"] {
            let (seen, read) = text(bad, Shape::Documents);
            assert!(seen.is_empty() && read.is_err(), "{bad}: {seen:?}");
        }
    }

    #[test]
    fn an_endless_record_or_name_in_an_array_ends_the_input() {
        for (begin, byte) in [
            (r#"{"Records":[{}, ""#, b'x'),
            (r#"{"Records":[{}], ""#, b'x'),
            (r#"{"Records":[{}], "a": "#, b'['),
            (r#"{"Records":[{}, [[["#, b'['),
            (r#"{"Records":[{}, "#, b' '),
        ] {
            let endless = Cursor::new(begin.as_bytes()).chain(io::repeat(byte));
            let (seen, read) = read(endless, Shape::Documents);
            assert_eq!(seen, ["{}"], "{begin}");
            let why = read.unwrap_err();
            assert!(why.contains("more than 1048576 bytes"), "{begin}: {why}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_record() {
        for input in ["\u{feff}{\"a\":1}\r\n", "\u{feff}[{\"a\":1}]"] {
            for shape in [Shape::Lines, Shape::Documents] {
                let (seen, read) = text(input, shape);
                assert_eq!((seen, read), (vec![r#"{"a":1}"#.to_owned()], Ok(())));
            }
            let (seen, _) = read(Cursor::new(gzip(input.as_bytes())), Shape::Documents);
            assert_eq!(seen, [r#"{"a":1}"#]);
        }
    }

    #[test]
    fn an_event_does_not_vanish_behind_a_list() {
        for both in [
            r#"{"eventName":"DeleteObject","Records":[]}"#,
            r#"{"Records":[],"userIdentity":{}}"#,
        ] {
            let (seen, read) = text(both, Shape::Documents);
            assert!(seen.is_empty() && read.is_err(), "{both}");
        }
    }

    #[test]
    fn a_decompression_bomb_is_stopped() {
        let bomb = gzip(&vec![b' '; 24 * 1024 * 1024]);
        assert!(bomb.len() < 100_000);
        for shape in [Shape::Lines, Shape::Documents] {
            let (seen, read) = read(Cursor::new(bomb.clone()), shape);
            assert!(seen.is_empty());
            assert!(read.unwrap_err().contains("as no log is"));
        }
    }

    #[test]
    fn what_is_cut_or_spoilt_in_a_compressed_file_is_told() {
        let whole = gzip(&b"{\"a\":1}\n".repeat(10_000));
        let cut = whole[..whole.len() - 9].to_vec();
        let (_, cut) = read(Cursor::new(cut), Shape::Lines);
        assert!(cut.is_err());
        let mut spoilt = whole;
        let last = spoilt.len() - 5;
        spoilt[last] ^= 1;
        let (_, spoilt) = read(Cursor::new(spoilt), Shape::Lines);
        assert!(spoilt.is_err());
    }
}
