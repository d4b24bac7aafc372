//! Memory does not grow with the number of records.

use super::*;

/// The peak memory, in KiB, after the command has read so many records from standard input. Each
/// record has 3 KiB, its own principal and its own id.
fn peak_after(log: &Made, records: u32, cloudtrail: bool) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log"), &log.file).unwrap();
    std::fs::write(dir.path().join("mapping.toml"), MAPPING).unwrap();
    let format = ["--mapping mapping.toml", "--format cloudtrail"][usize::from(cloudtrail)];
    let arguments = format!("--log log --key KEY --records - --json {format}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_taskpass"))
        .args(words(&arguments, &log.vkey))
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    let padding = "p".repeat(2_500);
    let claims = json!({"jti": SESSION, "dec": URL_SAFE_NO_PAD.encode(log.hash.as_bytes())});
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
    if cloudtrail {
        input.write_all(b"{\"Records\":[").unwrap();
    }
    for n in 0..records {
        // Each record names another object and another region.
        let mut record = if cloudtrail {
            let mut event = event(&format!("e-{n}"), IN_TIME);
            event["resources"] = Value::Null;
            event["requestParameters"]["key"] = format!("team/{n}").into();
            event["awsRegion"] = format!("{padding}{n}").into();
            event
        } else {
            let place = format!("arn:aws:s3:::reports/{n}");
            json!({
                "at": IN_TIME, "id": n, "right": "s3:GetObject", "url": place,
                "authorization": token, "region": format!("{padding}{n}")
            })
        };
        record["who"] = format!("somebody-{n}").into();
        record["userIdentity"]["userName"] = format!("somebody-{n}").into();
        let end = match cloudtrail {
            true if n + 1 < records => ",",
            true => "]}",
            false => "\n",
        };
        write!(input, "{record}{end}").unwrap();
    }
    input.flush().unwrap();
    // The pipe is still open: the command has read all but the pipe's buffer, and waits for more.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    drop(input);
    let ended = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(report["records"]["read"], records);
    peak
}

#[test]
fn memory_does_not_grow_with_the_records() {
    let log = made();
    for cloudtrail in [true, false] {
        let small = peak_after(&log, 1_000, cloudtrail);
        let large = peak_after(&log, 8_000, cloudtrail);
        // The command read 20 MiB more, most of it names of regions. Only the bounded tables
        // (groups, recent records) may grow.
        assert!(large < small + 10 * 1024, "{small} KiB, then {large} KiB");
        assert!(large < 128 * 1024, "{large} KiB");
    }
}
