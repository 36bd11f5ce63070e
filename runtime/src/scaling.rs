//! `bench --scaling` and `bench --sessions`: how a model's time follows the number of
//! threads, and what several sessions at once cost each other. What is compared takes
//! turns, so that a machine whose clock or load changes changes all alike.

use crate::cli::Request;
use crate::device::Name;
use crate::error::{Error, Result};
use crate::profile::StepTime;
use crate::roofline::{FmaLoop, rate};
use crate::{Input, Model, Session};
use serde_json::json;
use std::sync::{Arc, Barrier};
use std::time::Instant;

/// Turns; a time is the fastest of so many, a ratio of two turns their median.
const TURNS: usize = 15;
/// Seconds of runs in one turn of one contestant.
const TURN: f64 = 0.1;
/// Iterations of the arithmetic loop: about a millisecond, and how often in a turn.
const ITERATIONS: i64 = 1 << 18;
const LOOPS: usize = 20;
/// Steps that reports name.
const NAMED: usize = 8;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Milliseconds of a run, the fastest of those in one turn.
fn turn(session: &mut Session, entry: usize, inputs: &[(&str, Input)], runs: usize) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        session.run_with(entry, inputs)?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}

/// Runs that fill a turn.
fn runs_a_turn(session: &mut Session, entry: usize, inputs: &[(&str, Input)]) -> Result<usize> {
    session.run_with(entry, inputs)?;
    let once = turn(session, entry, inputs, 3)? / 1e3;
    Ok(((TURN / once.max(1e-6)) as usize).clamp(2, 10_000))
}

/// The speed-up of a model from one thread to all, over that of arithmetic in registers.
/// A model's time is the sum of the fastest times of its steps: a run is long enough to
/// be interrupted in each turn, a step is not.
pub(crate) fn scaling(
    r: &Request,
    model: Arc<Model>,
    entry: usize,
    fma: &FmaLoop,
    inputs: &[(&str, Input)],
) -> Result<String> {
    if r.device != Name::Cpu {
        return Err(
            Error::input("K0733", "`--scaling` is about the CPU's threads")
                .help("leave --device out"),
        );
    }
    let mut one = Session::new(model.clone(), 1)?;
    let mut many = Session::new(model, r.threads.clone())?;
    let count = many.threads();
    if count < 2 {
        return Err(Error::input("K0733", "one thread has nothing to scale to")
            .help("give --threads N with N > 1"));
    }
    let runs = runs_a_turn(&mut one, entry, inputs)?;
    many.run_with(entry, inputs)?;
    // The best of all turns: whatever else runs can only slow them down.
    let (mut loop_one, mut loop_many): (f64, f64) = (0.0, 0.0);
    let mut steps = (vec![], vec![]);
    for _ in 0..TURNS {
        loop_one = loop_one.max(rate(1, LOOPS, &|_| (fma.run)(ITERATIONS)));
        fastest(&mut one, entry, inputs, runs, &mut steps.0)?;
        loop_many = loop_many.max(rate(count, LOOPS, &|_| (fma.run)(ITERATIONS)));
        fastest(&mut many, entry, inputs, runs, &mut steps.1)?;
    }
    let sum = |steps: &[StepTime]| steps.iter().map(|s| s.ns as f64 / 1e6).sum::<f64>();
    let (t1, tn) = (sum(&steps.0), sum(&steps.1));
    let (of_loop, of_model) = (loop_many / loop_one, t1 / tn);
    let lost = losses(&steps.0, &steps.1, of_loop);
    let efficiency = of_model / of_loop;
    if r.json {
        let steps: Vec<_> = lost
            .iter()
            .take(NAMED)
            .map(|(ns, a, b)| json!({ "label": a.label, "kernel": a.kernel, "one_ns": a.ns, "many_ns": b.ns, "lost_ns": ns }))
            .collect();
        return Ok(json!({
            "threads": count, "one_ms": t1, "many_ms": tn, "speed_up": of_model,
            "loop_speed_up": of_loop, "efficiency": efficiency, "lost": steps,
        })
        .to_string());
    }
    let mut text = format!(
        "1 thread {t1:.3} ms, {count} threads {tn:.3} ms: {of_model:.2} times as fast; arithmetic in registers {of_loop:.2} times; efficiency {efficiency:.3}\n"
    );
    for (ns, a, b) in lost.iter().take(NAMED) {
        text += &format!(
            "{:9.1} µs lost  {:9.1} -> {:9.1} µs ({:.2})  {}\n",
            ns / 1e3,
            a.ns as f64 / 1e3,
            b.ns as f64 / 1e3,
            a.ns as f64 / b.ns as f64,
            a.label
        );
    }
    Ok(text.trim_end().to_string())
}

/// Profiles runs and keeps the fastest time of each step.
fn fastest(
    session: &mut Session,
    entry: usize,
    inputs: &[(&str, Input)],
    runs: usize,
    steps: &mut Vec<StepTime>,
) -> Result<()> {
    for _ in 0..runs {
        session.set_profiling(true);
        session.run_with(entry, inputs)?;
        let new = session.take_profile().unwrap_or_default().steps;
        if steps.len() != new.len() {
            // The first run, or one in which data decided otherwise.
            *steps = new;
            continue;
        }
        for (best, new) in steps.iter_mut().zip(new) {
            if new.ns < best.ns {
                *best = new;
            }
        }
    }
    Ok(())
}

/// Nanoseconds that each step takes beyond its share, most first.
fn losses<'a>(
    one: &'a [StepTime],
    many: &'a [StepTime],
    speed_up: f64,
) -> Vec<(f64, &'a StepTime, &'a StepTime)> {
    let mut all: Vec<_> = one
        .iter()
        .zip(many)
        .filter(|(a, b)| a.label == b.label)
        .map(|(a, b)| (b.ns as f64 - a.ns as f64 / speed_up, a, b))
        .collect();
    all.sort_by(|x, y| y.0.total_cmp(&x.0));
    all
}

/// What `sessions` sessions at once take for their runs, over the time that they take
/// one after the other: 1 where nothing is lost.
pub(crate) fn sessions(
    r: &Request,
    model: Arc<Model>,
    entry: usize,
    inputs: &[(&str, Input)],
) -> Result<String> {
    let sessions = r.sessions;
    let mut all: Vec<Session> = (0..sessions)
        .map(|_| r.session(model.clone()))
        .collect::<Result<_>>()?;
    let mut runs = 0;
    for s in &mut all {
        runs = runs_a_turn(s, entry, inputs)?;
    }
    let (mut ratios, mut alone, mut together) = (vec![], vec![], vec![]);
    for _ in 0..TURNS {
        let start = Instant::now();
        for s in &mut all {
            turn(s, entry, inputs, runs)?;
        }
        let apart = start.elapsed().as_secs_f64();
        let at_once = at_once(&mut all, entry, inputs, runs)?;
        ratios.push(at_once / apart);
        alone.push(apart * 1e3 / (runs * sessions) as f64);
        together.push(at_once * 1e3 / runs as f64);
    }
    let count = all.first().map_or(0, Session::threads);
    let (ratio, alone, together) = (median(ratios), median(alone), median(together));
    Ok(match r.json {
        true => json!({
            "sessions": sessions, "threads": count, "alone_ms": alone,
            "together_ms": together, "ratio": ratio,
        })
        .to_string(),
        false => format!(
            "{sessions} sessions of {count} threads: a run takes {alone:.3} ms alone and {together:.3} ms beside the others; all at once take {ratio:.3} of the time that they take one after the other"
        ),
    })
}

/// Seconds from the common start to the last session's end.
fn at_once(
    all: &mut [Session],
    entry: usize,
    inputs: &[(&str, Input)],
    runs: usize,
) -> Result<f64> {
    let gate = Barrier::new(all.len());
    let work = |session: &mut Session| {
        gate.wait();
        let start = Instant::now();
        turn(session, entry, inputs, runs)?;
        Ok((start, Instant::now()))
    };
    let ends: Vec<Result<(Instant, Instant)>> = std::thread::scope(|s| {
        let work = &work;
        let threads: Vec<_> = all.iter_mut().map(|x| s.spawn(move || work(x))).collect();
        let panicked = || Error::run("K0724", "a session's thread panicked");
        (threads.into_iter())
            .map(|t| t.join().unwrap_or_else(|_| Err(panicked())))
            .collect()
    });
    let ends: Vec<(Instant, Instant)> = ends.into_iter().collect::<Result<_>>()?;
    let first = ends.iter().map(|e| e.0).min();
    let last = ends.iter().map(|e| e.1).max();
    Ok(first.zip(last).map_or(0.0, |(a, b)| (b - a).as_secs_f64()))
}
