//! CPU time and memory of processes, from `/proc`.

use std::fs;

use crate::support::postgres::TestDatabase;

/// Microseconds in one of the kernel's ticks, of which Linux has 100 a second.
const TICK_US: f64 = 10_000.0;

/// User and system time of a process so far, in microseconds.
pub fn cpu_us(pid: u32) -> f64 {
    let stat = Stat::of(&pid.to_string()).expect("the process runs");
    stat.own_us
}

/// The same of this process.
pub fn own_cpu_us() -> f64 {
    Stat::of("self").unwrap().own_us
}

/// The memory of a process that is in RAM, in MB.
pub fn rss_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<f64>().unwrap() * 1_024.0 / 1e6
}

struct Stat {
    parent: u32,
    own_us: f64,
    /// The time of children that have ended.
    children_us: f64,
}

impl Stat {
    /// `None` if there is no such process.
    fn of(pid: &str) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may contain spaces.
        let after_name = stat.rsplit(')').next()?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
        Some(Self {
            parent: fields[1].parse().ok()?,
            own_us: (ticks(11) + ticks(12)) * TICK_US,
            children_us: (ticks(13) + ticks(14)) * TICK_US,
        })
    }
}

/// The processes of a PostgreSQL cluster on this machine.
#[derive(Clone, Copy)]
pub struct Postgres {
    postmaster: u32,
}

impl Postgres {
    /// `None` if the cluster runs on another machine.
    pub async fn of(database: &TestDatabase) -> Option<Self> {
        let mut connection = database.connect().await;
        let (file,): (String,) = sqlx::query_as("SELECT pg_read_file('postmaster.pid')")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        let postmaster = file.lines().next()?.trim().parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{postmaster}/comm")).ok()?;
        (name.trim() == "postgres").then_some(Self { postmaster })
    }

    /// The time of all its processes so far, in microseconds, those that have ended included.
    pub fn cpu_us(self) -> f64 {
        let mut total = Stat::of(&self.postmaster.to_string())
            .map_or(0.0, |stat| stat.own_us + stat.children_us);
        for entry in fs::read_dir("/proc").unwrap() {
            let name = entry.unwrap().file_name();
            let Some(pid) = name.to_str().filter(|pid| pid.parse::<u32>().is_ok()) else {
                continue;
            };
            if let Some(stat) = Stat::of(pid)
                && stat.parent == self.postmaster
            {
                total += stat.own_us;
            }
        }
        total
    }
}
