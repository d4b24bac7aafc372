//! Secrets and files that the user or the system names.
//!
//! A secret that is empty, a file that is too long, and a new file that exists already are
//! [`ClientError::Invalid`]; a file that cannot be read or written is [`ClientError::Unavailable`].
//! The commands and `super::evidence` call this file.

use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::ClientError;
use crate::files::{create_private, secret_in};

/// The longest token that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// Reads a secret from a file, or from standard input for `-`.
pub(crate) fn read_secret(file: &Path) -> Result<SecretString, ClientError> {
    let name = file.display().to_string();
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        let stdin = std::io::stdin().lock();
        stdin.take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file)
            .and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| ClientError::Unavailable(format!("cannot read {name}: {error}")))?;
    secret_of(&text, &name)
}

/// Writes a secret to a private file that must not exist yet.
pub(crate) fn write_new_secret(file: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    let name = file.display();
    let written = create_private(file).and_then(|mut made| {
        made.write_all(bytes)?;
        made.sync_all()
    });
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => ClientError::Invalid(format!(
            "{name} already exists and is not overwritten: give another file"
        )),
        _ => ClientError::Unavailable(format!("cannot write {name}: {error}")),
    })
}

/// The secret in a text that was read from `name`.
pub(crate) fn secret_of(text: &str, name: &str) -> Result<SecretString, ClientError> {
    let text = secret_in(text);
    if text.is_empty() {
        return Err(ClientError::Invalid(format!("{name} holds no token")));
    }
    Ok(SecretString::from(text))
}

/// Reads a file that the user named, or standard input for `-`.
pub(crate) fn read_file(file: &Path, at_most: u64) -> Result<Vec<u8>, ClientError> {
    let name = file.display();
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        let stdin = std::io::stdin().lock();
        stdin.take(at_most + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(at_most + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| ClientError::Unavailable(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > at_most {
        return Err(ClientError::Invalid(format!(
            "{name} has more than {at_most} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_token() {
        let read = secret_of("\u{feff} tpa_secret\r\n", "file").unwrap();
        assert_eq!(read.expose_secret(), "tpa_secret");
        assert!(secret_of("\u{feff}\r\n", "file").is_err());
    }
}
