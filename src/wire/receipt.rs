//! The proof that a leaf is in the log, as answers carry it.
//!
//! The receipts of the examples verify under the key in the example of
//! [`super::ledger::VkeysBody`]. Their leaves have only some members of a real leaf.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

/// The proof that a leaf is in the log. `crate::merkle::Receipt` reads and verifies this form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Receipt, examples(example_of_permit))]
pub struct ReceiptBody {
    /// The leaf's bytes in base64.
    pub leaf: String,
    /// The hash of the leaf in base64.
    pub leaf_hash: String,
    /// The leaf's index in the log.
    pub index: u64,
    /// The number of leaves of the proof's tree.
    pub tree_size: u64,
    /// The hashes in base64, from the leaf's sibling to the root's child.
    pub inclusion_proof: Vec<String>,
    /// The signed checkpoint of that tree.
    pub checkpoint: String,
}

/// An example: the receipt of a decision that permits.
pub(super) fn example_of_permit() -> Value {
    json!({
        "leaf": "eyJ2IjoyLCJvcmlnaW4iOiJicm9rZXIuZXhhbXBsZS9sb2ciLCJhdCI6IjIwMjYtMDEtMDFUMDA6MDA6MDBaIiwiZXZlbnQiOiJkZWNpc2lvbiIsImRlY2lzaW9uIjoiMDE4OTBhNWQtYWM5Ni03NzRiLWJjY2UtYjMwMjA5OWE4MDU5Iiwib3V0Y29tZSI6InBlcm1pdCIsIndvcmtsb2FkIjoiY2k6cmVwby0xIiwiYXR0ZXN0b3IiOiJjaSIsInJlc291cmNlIjoib3JkZXJzLWFwaSIsInRhc2siOiIwMTg5MGE1ZC1hYzk2LTc3NGItYmNjZS1iMzAyMDk5YTgwNTgiLCJzZXNzaW9uIjoiMDE4OTBhNWQtYWM5Ni03NzRiLWJjY2UtYjMwMjA5OWE4MDU3In0=",
        "leaf_hash": "9XoB9JdYvUS8+eEVsWfQJMnXCpJJHrxBkKkYcIFSb1E=",
        "index": 4,
        "tree_size": 5,
        "inclusion_proof": ["aVy+d2qgdWGiw5GDKcaJZYI5cVCQ011d+ghcSLJST1A="],
        "checkpoint": "broker.example/log\n5\nwrs5SvomIJ4G0W1jT8Lam0uZCSRhycCDQrwUVuFlkb4=\n\n— broker.example/log 6T/vObLUTrmhcbVKXTNX7koiClBhvqcZwuNPg3lIxZuIhM4EfeRl8QqiDauzdtehAv4ub/R/hbxIYlVsuxZBemUVjQ4=\n"
    })
}

/// An example: the receipt of a decision that refuses.
pub(super) fn example_of_refusal() -> Value {
    json!({
        "leaf": "eyJ2IjoyLCJvcmlnaW4iOiJicm9rZXIuZXhhbXBsZS9sb2ciLCJhdCI6IjIwMjYtMDEtMDFUMDA6MDA6MTBaIiwiZXZlbnQiOiJkZWNpc2lvbiIsImRlY2lzaW9uIjoiMDE4OTBhNWQtYWM5Ni03NzRiLWJjY2UtYjMwMjA5OWE4MDViIiwib3V0Y29tZSI6ImRlbnkiLCJyZWZ1c2FsIjoibm90LXBlcm1pdHRlZCIsIndvcmtsb2FkIjoiY2k6cmVwby0xIiwiYXR0ZXN0b3IiOiJjaSIsInJlc291cmNlIjoib3JkZXJzLWFwaSIsInRhc2siOiIwMTg5MGE1ZC1hYzk2LTc3NGItYmNjZS1iMzAyMDk5YTgwNTgifQ==",
        "leaf_hash": "Brt4WPaEKXd+D6Hkxiby6WgPiDD1Sl7GyDxTaEOt4R4=",
        "index": 5,
        "tree_size": 6,
        "inclusion_proof": [
            "9XoB9JdYvUS8+eEVsWfQJMnXCpJJHrxBkKkYcIFSb1E=",
            "aVy+d2qgdWGiw5GDKcaJZYI5cVCQ011d+ghcSLJST1A="
        ],
        "checkpoint": "broker.example/log\n6\nUwqbC719Bt1/zvJzRnrdK4dRCH5053+9tquJZSI5raE=\n\n— broker.example/log 6T/vOasgSo0eRngkxwq9mkwe7ocUBHg9kEl06e3GvLsmSzRq5fxB1wr0GyNrwqXsaZnX64uyS4x0tTRf5mUCqr86eAk=\n"
    })
}

/// An example: the receipt of an opened task.
pub(super) fn example_of_opening() -> Value {
    json!({
        "leaf": "eyJ2IjoyLCJvcmlnaW4iOiJicm9rZXIuZXhhbXBsZS9sb2ciLCJhdCI6IjIwMjYtMDEtMDFUMDA6MDA6MjBaIiwiZXZlbnQiOiJ0YXNrX29wZW5lZCIsImRlY2lzaW9uIjoiMDE4OTBhNWQtYWM5Ni03NzRiLWJjY2UtYjMwMjA5OWE4MDVjIiwidGFzayI6IjAxODkwYTVkLWFjOTYtNzc0Yi1iY2NlLWIzMDIwOTlhODA1OCIsInRhc2tfdHlwZSI6Im5pZ2h0bHktcmVwb3J0Iiwid29ya2xvYWQiOiJjaTpyZXBvLTEiLCJhdHRlc3RvciI6ImNpIn0=",
        "leaf_hash": "pv8CD+SUJOs2Y91a7MyoOqgZICvYQqSm7OftWtq6/jw=",
        "index": 6,
        "tree_size": 7,
        "inclusion_proof": [
            "A3NcHRsh1iAfw8YTTWzxiDsIt7ML6nhA6e9qAlaTlto=",
            "aVy+d2qgdWGiw5GDKcaJZYI5cVCQ011d+ghcSLJST1A="
        ],
        "checkpoint": "broker.example/log\n7\nSFnQRt22ZWXuOgnzNwyhY3rlWKx5syP4u3HaAfBwOMo=\n\n— broker.example/log 6T/vObgY2hMIGicOJI2cMwdGWHDgl/x8QRNEW9YL/LJsyz1cUpdbYYRyO4XedFhtlCcNzCLMEOc0kRVj417zYGxWBAU=\n"
    })
}
