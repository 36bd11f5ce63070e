//! A profile in Chrome's trace-event format, which Perfetto and `chrome://tracing`
//! open: <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.
//!
//! Track 0 is the caller's thread: the run, in it the steps, in each what the caller
//! itself worked on. Each further track is a thread of the pool, and the last ones the
//! lanes of the device, by its own clock, if kernels run on one.

use crate::profile::{Lane, Profile, StepTime};
use crate::roofline::Roofline;
use serde_json::{Value, json};

/// The tracks of a device's lanes, behind those of threads.
const TRACKS: [(Lane, usize, &str); 3] = [
    (Lane::ToDevice, 9997, "copies to the device"),
    (Lane::Device, 9998, "the device"),
    (Lane::ToHost, 9999, "copies to the host"),
];

/// The trace of one run on so many threads; shares of a roofline where there is one.
pub fn trace(profile: &Profile, roofline: Option<&Roofline>, threads: usize, title: &str) -> Value {
    let mut events = vec![meta("process_name", 0, title)];
    for (lane, track, name) in TRACKS {
        if profile.steps.iter().any(|s| s.lane == lane) {
            events.push(meta("thread_name", track, name));
        }
    }
    for thread in 0..threads {
        let name = match thread {
            0 => "steps, on the caller's thread".to_string(),
            n => format!("thread {n} of the pool"),
        };
        events.push(meta("thread_name", thread, &name));
    }
    events.push(json!({
        "ph": "X", "name": "run", "cat": "run", "pid": 1, "tid": 0,
        "ts": 0.0, "dur": micro(profile.ns()), "args": { "steps": profile.steps.len() },
    }));
    for (i, step) in profile.steps.iter().enumerate() {
        events.push(step_event(i, step, roofline));
        for w in &step.work {
            events.push(json!({
                "ph": "X", "name": step.label, "cat": "work", "pid": 1, "tid": w.thread,
                "ts": micro(w.start), "dur": micro(w.ns),
                "args": { "step": i, "units": w.units },
            }));
        }
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ns", "otherData": { "roofline": roofline } })
}

fn step_event(index: usize, s: &StepTime, roofline: Option<&Roofline>) -> Value {
    let share = roofline.map(|r| r.share(s.flops, s.bytes, s.ns));
    let (share, bound) = (share.map(|s| s.0), share.map(|s| s.1));
    let track = TRACKS.iter().find(|t| t.0 == s.lane).map_or(0, |t| t.1);
    json!({
        "ph": "X", "name": s.label, "cat": "step", "pid": 1, "tid": track,
        "ts": micro(s.start), "dur": micro(s.ns),
        "args": {
            "step": index, "kernel": s.kernel, "flops": s.flops, "bytes": s.bytes,
            "gflops": s.flops as f64 / s.ns as f64, "gb_s": s.bytes as f64 / s.ns as f64,
            "share": share, "bound": bound, "lane": s.lane, "counts": s.counts,
        },
    })
}

fn meta(what: &str, thread: usize, name: &str) -> Value {
    json!({ "ph": "M", "name": what, "pid": 1, "tid": thread, "args": { "name": name } })
}

/// Nanoseconds as the format's microseconds.
fn micro(ns: u64) -> f64 {
    ns as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Facts;

    fn profile() -> Profile {
        let mut p = Profile::new();
        for (label, flops) in [("linear \"one\"", 2_000_000), ("softmax", 900)] {
            let watch = p.watch(2);
            for thread in [0, 1, 0] {
                watch.units(thread, 5, || {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    0
                });
            }
            let (label, kernel) = (label.to_string(), "k".to_string());
            p.add(
                watch,
                Facts {
                    label,
                    kernel,
                    flops,
                    bytes: 64,
                },
            );
        }
        p
    }

    /// Of two events of one track, one ends before the other starts or holds it.
    fn nested(events: &[(u64, f64, f64)]) -> bool {
        // Thousandths of a microsecond do not add up exactly in binary.
        let slack = 1e-6;
        let apart = |a: &(u64, f64, f64), b: &(u64, f64, f64)| a.2 <= b.1 + slack;
        let holds =
            |a: &(u64, f64, f64), b: &(u64, f64, f64)| a.1 <= b.1 + slack && b.2 <= a.2 + slack;
        events.iter().enumerate().all(|(i, a)| {
            events[i + 1..]
                .iter()
                .all(|b| a.0 != b.0 || apart(a, b) || apart(b, a) || holds(a, b) || holds(b, a))
        })
    }

    #[test]
    fn each_lane_of_a_device_has_a_row() {
        let mut p = profile();
        let lanes = [
            Lane::Host,
            Lane::ToDevice,
            Lane::Device,
            Lane::ToHost,
            Lane::Device,
        ];
        let step = |lane| StepTime {
            lane,
            work: vec![],
            ..p.steps[0].clone()
        };
        p.steps = lanes.into_iter().map(step).collect();
        // The one that ends last is not the last one.
        p.steps[3].ns = 1 << 40;
        assert_eq!(p.ns(), p.steps[3].start + (1 << 40));
        let doc = trace(&p, None, 1, "model");
        let events = doc["traceEvents"].as_array().unwrap();
        let rows: Vec<_> = (events.iter())
            .filter(|e| e["name"] == "thread_name")
            .map(|e| (e["tid"].clone(), e["args"]["name"].clone()))
            .collect();
        let of = |i: usize| {
            let mut steps = events.iter().filter(|e| e["cat"] == "step");
            let track = steps.nth(i).unwrap()["tid"].clone();
            let row = rows.iter().find(|r| r.0 == track).unwrap();
            row.1.as_str().unwrap().to_string()
        };
        let names: Vec<String> = (0..lanes.len()).map(of).collect();
        let device = "the device";
        let (up, down) = ("copies to the device", "copies to the host");
        let host = "steps, on the caller's thread";
        assert_eq!(names, [host, up, device, down, device]);
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn every_step_is_there_and_events_nest() {
        let roofline = Roofline {
            fma_gflops: 100.0,
            read_gb_s: 10.0,
            threads: 2,
            fma_loop: "",
        };
        let p = profile();
        let text = trace(&p, Some(&roofline), 2, "model").to_string();
        let doc: Value = serde_json::from_str(&text).unwrap();
        let all = doc["traceEvents"].as_array().unwrap();
        let of = |cat: &str| -> Vec<&Value> { all.iter().filter(|e| e["cat"] == cat).collect() };
        assert_eq!(of("run").len(), 1);
        assert_eq!(of("work").len(), 4);
        for (event, step) in of("step").iter().zip(&p.steps) {
            assert_eq!(event["name"], step.label);
            assert_eq!(event["args"]["flops"], step.flops);
            let share = event["args"]["share"].as_f64().unwrap();
            // Reading decimals back may be off by the last bit.
            let want = roofline.share(step.flops, step.bytes, step.ns).0;
            assert!(
                (share - want).abs() <= 1e-12 * want,
                "{share} is not {want}"
            );
        }
        assert_eq!(of("step").len(), 2);
        assert!(
            of("work")
                .iter()
                .any(|e| e["tid"] == 0 && e["args"]["units"] == 10)
        );
        let complete: Vec<(u64, f64, f64)> = all
            .iter()
            .filter(|e| e["ph"] == "X")
            .map(|e| {
                let (ts, dur) = (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
                (e["tid"].as_u64().unwrap(), ts, ts + dur)
            })
            .collect();
        assert!(nested(&complete), "{text}");
        assert!(!nested(&[(0, 0.0, 2.0), (0, 1.0, 3.0)]));
    }
}
