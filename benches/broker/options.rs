//! The options of a run: the names of the measurements, and
//!
//! | option | meaning | default |
//! |---|---|---|
//! | `--clients 1,8,64` | numbers of clients | 1, 8, 64; 8 in the pairs |
//! | `--rounds N` | rounds of each figure | 5 |
//! | `--seconds N` | duration of one load in a round | 6 |
//! | `--past N` | past sessions in the store | 100,000 |
//! | `--small N`, `--large N` | the two sides of a pair | by pair |
//! | `--count N` | tasks, sessions or tries of the other measurements | by measurement |
//! | `--smoke` | everything, for seconds | |
//! | `--json` | JSON after the tables | |

use std::str::FromStr;

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Rounds,
    PastSessions,
    Actions,
    Policies,
    Cutoffs,
    Deadlines,
    Silence,
    Heartbeats,
    RevokeAll,
    Refusal,
    Tree,
    Memory,
    Variants,
}

impl Name {
    const ALL: [Self; 13] = [
        Self::Rounds,
        Self::PastSessions,
        Self::Actions,
        Self::Policies,
        Self::Cutoffs,
        Self::Deadlines,
        Self::Silence,
        Self::Heartbeats,
        Self::RevokeAll,
        Self::Refusal,
        Self::Tree,
        Self::Memory,
        Self::Variants,
    ];

    /// The measurements that run if none is named.
    const DEFAULT: [Self; 5] = [
        Self::Rounds,
        Self::PastSessions,
        Self::Actions,
        Self::Policies,
        Self::Cutoffs,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rounds => "rounds",
            Self::PastSessions => "past_sessions",
            Self::Actions => "actions",
            Self::Policies => "policies",
            Self::Cutoffs => "cutoffs",
            Self::Deadlines => "deadlines",
            Self::Silence => "silence",
            Self::Heartbeats => "heartbeats",
            Self::RevokeAll => "revoke_all",
            Self::Refusal => "refusal",
            Self::Tree => "tree",
            Self::Memory => "memory",
            Self::Variants => "variants",
        }
    }
}

pub struct Options {
    pub names: Vec<Name>,
    /// Numbers of clients; `None` if the run names none.
    clients: Option<Vec<usize>>,
    pub rounds: usize,
    /// The duration of one load.
    pub seconds: u64,
    /// Sessions that have expired, in the store of every measurement.
    pub past: usize,
    small: Option<usize>,
    large: Option<usize>,
    count: Option<usize>,
    pub smoke: bool,
    pub json: bool,
}

impl Options {
    /// Reads the program's arguments; panics at an unknown one.
    pub fn read() -> Self {
        let mut options = Self {
            names: Vec::new(),
            clients: None,
            rounds: 5,
            seconds: 6,
            past: 100_000,
            small: None,
            large: None,
            count: None,
            smoke: false,
            json: false,
        };
        let mut arguments = std::env::args().skip(1);
        let smoke = std::env::args().any(|argument| argument == "--smoke");
        if smoke {
            (options.smoke, options.rounds, options.seconds) = (true, 2, 1);
            options.past = 500;
            options.clients = Some(vec![2]);
        }
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().expect("the option needs a value");
            match argument.as_str() {
                "--clients" => {
                    let list = value();
                    options.clients = Some(list.split(',').map(number).collect());
                }
                "--rounds" => options.rounds = number(&value()),
                "--seconds" => options.seconds = number(&value()),
                "--past" => options.past = number(&value()),
                "--small" => options.small = Some(number(&value())),
                "--large" => options.large = Some(number(&value())),
                "--count" => options.count = Some(number(&value())),
                "--json" => options.json = true,
                // `cargo bench` adds the second one.
                "--smoke" | "--bench" => {}
                other => {
                    let name = Name::ALL.into_iter().find(|name| name.as_str() == other);
                    let known = Name::ALL.map(Name::as_str).join(", ");
                    let name = name.unwrap_or_else(|| panic!("`{other}` is not one of: {known}"));
                    options.names.push(name);
                }
            }
        }
        assert!(options.rounds > 0, "--rounds must be at least 1");
        assert!(options.seconds > 0, "--seconds must be at least 1");
        if options.names.is_empty() {
            options.names = if smoke {
                Name::ALL.to_vec()
            } else {
                Name::DEFAULT.to_vec()
            };
        }
        options
    }

    pub fn clients_or(&self, default: &[usize]) -> Vec<usize> {
        self.clients.clone().unwrap_or_else(|| default.to_vec())
    }

    /// The option `--count`, or the default of a full run or of a smoke run.
    pub fn count_or(&self, full: usize, smoke: usize) -> usize {
        self.count.unwrap_or(if self.smoke { smoke } else { full })
    }

    /// The sizes of a pair's two sides: by the options, or the defaults of a full run or of a smoke run.
    pub fn sizes_or(&self, full: [usize; 2], smoke: [usize; 2]) -> [usize; 2] {
        let [small, large] = if self.smoke { smoke } else { full };
        [self.small.unwrap_or(small), self.large.unwrap_or(large)]
    }
}

fn number<T: FromStr>(text: &str) -> T {
    let parsed = text.replace('_', "").parse();
    parsed.unwrap_or_else(|_| panic!("`{text}` is not a number"))
}
