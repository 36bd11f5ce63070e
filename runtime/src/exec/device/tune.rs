//! Measuring the forms of kernels where they run: at its first launch with certain
//! parameters, every form of a kernel that serves is started again and again on the
//! arguments as they lie, and what the launch writes is put back each time.

use super::super::Ready;
use super::super::launch::serving;
use super::super::schedule::numbered_launches;
use super::super::steps::Run;
use super::Piece;
use crate::device::{Clock, Lane, Mark, TensorMap};
use crate::error::Result;
use crate::gpu::Extent;
use crate::plan::Launch;
use crate::tuned::Tuned;
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Instant;

/// Rounds in which each form has a turn, at most and at least; before them, each has one
/// that is not counted.
const MOST_ROUNDS: usize = 15;
const LEAST_ROUNDS: usize = 3;

/// Bytes that are filled before each turn, more than any cache of a GPU holds: all forms
/// find it without their data, and the host is ahead of the device.
const FLUSHED: usize = 128 << 20;

/// A form is taken in place of the first one only where it is faster by this share at
/// least, and three quarters of its turns beat three quarters of the first one's.
const LEAST_GAIN: f64 = 0.02;

/// What the figures of a form are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nanoseconds by the device's clock.
    Nanoseconds,
    /// Instructions of warps, counted by an interpreter: no time.
    WarpInstructions,
}

/// A form's figures for a launch.
#[derive(Clone, Debug, Serialize)]
pub struct FormFigures {
    /// Its number.
    pub form: u32,
    /// Its first entry's name.
    pub entry: String,
    /// The median of its turns.
    pub median: u64,
    /// What a quarter of its turns is below.
    pub lower: u64,
    /// What a quarter of its turns is above.
    pub upper: u64,
}

/// The forms of a launch, the first one that serves first.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// What the launch stems from.
    pub label: String,
    /// The kernel.
    pub kernel: u32,
    /// The launch's integer parameters.
    pub params: Vec<i64>,
    /// Turns of each form.
    pub rounds: usize,
    /// The forms that serve.
    pub forms: Vec<FormFigures>,
    /// The form that is taken from now on.
    pub best: u32,
}

/// A launch that was not measured.
#[derive(Clone, Debug, Serialize)]
pub struct Untimed {
    /// What it stems from.
    pub label: String,
    /// Why.
    pub why: String,
}

/// What a run measured.
#[derive(Clone, Debug, Serialize)]
pub struct Tuning {
    /// The target whose code ran.
    pub target: String,
    /// The device's name.
    pub device: String,
    /// What figures are.
    pub unit: Unit,
    /// Launches with several forms, each kernel and parameters once.
    pub measured: Vec<Measured>,
    /// Launches whose kernel has one form that serves them.
    pub of_one_form: usize,
    /// Launches whose kernel and parameters another launch had before.
    pub alike: usize,
    /// What was left out.
    pub untimed: Vec<Untimed>,
}

impl Tuning {
    /// The rows for the plan's table: where the first form is not the best one.
    pub fn rows(&self) -> Vec<Tuned> {
        let other = |m: &&Measured| m.forms.first().is_some_and(|f| f.form != m.best);
        let row = |m: &Measured| Tuned {
            device: self.device.clone(),
            kernel: m.kernel,
            params: m.params.clone(),
            form: m.best,
        };
        self.measured.iter().filter(other).map(row).collect()
    }
}

/// What measures while a run goes on.
pub(in super::super) struct Tuner {
    deadline: Instant,
    unit: Unit,
    /// Launches by their places that the run came to.
    reached: BTreeSet<usize>,
    seen: BTreeSet<(u32, Vec<i64>)>,
    measured: Vec<Measured>,
    of_one_form: usize,
    alike: usize,
    untimed: Vec<Untimed>,
    /// What is filled before each turn, on devices with a clock.
    flushed: Piece,
    /// Where what a launch writes is kept.
    kept: Piece,
}

/// A form that serves: its number, blocks and tensor maps.
type Candidate = (usize, Extent, Vec<TensorMap>);

impl super::OnDevice {
    /// Measures in the runs from here on, until a moment.
    pub(in super::super) fn start_tuning(&mut self, deadline: Instant) -> Result<()> {
        let (unit, flushed) = match self.device.facts().clock {
            Clock::Time => {
                let flushed = self.piece(FLUSHED, "emptying the cache between measurements")?;
                (Unit::Nanoseconds, flushed)
            }
            Clock::Counts => (Unit::WarpInstructions, Piece::default()),
        };
        self.tuner = Some(Tuner {
            deadline,
            unit,
            reached: BTreeSet::new(),
            seen: BTreeSet::new(),
            measured: vec![],
            of_one_form: 0,
            alike: 0,
            untimed: vec![],
            flushed,
            kept: Piece::default(),
        });
        Ok(())
    }

    /// Ends measuring; what was found in runs of an entry with these steps.
    pub(in super::super) fn end_tuning(
        &mut self,
        steps: &[crate::plan::Step],
        target: &str,
    ) -> Result<Option<Tuning>> {
        let Some(t) = self.tuner.take() else {
            return Ok(None);
        };
        for piece in [t.flushed, t.kept] {
            if piece.at != 0 {
                self.device.free(piece.at)?;
            }
        }
        let mut untimed = t.untimed;
        let launches = numbered_launches(steps).into_iter();
        let missed = launches.filter(|(i, _)| !t.reached.contains(i));
        untimed.extend(missed.map(|(_, label)| Untimed {
            label: label.to_string(),
            why: "the run did not come to it".into(),
        }));
        Ok(Some(Tuning {
            target: target.into(),
            device: self.device.facts().name.clone(),
            unit: t.unit,
            measured: t.measured,
            of_one_form: t.of_one_form,
            alike: t.alike,
            untimed,
        }))
    }
}

impl Run<'_> {
    /// Measures the forms of a launch that is about to start, if this run is for that.
    pub(super) fn tune(&mut self, l: &Launch, r: &Ready, index: usize) -> Result<()> {
        let Some(mut tuner) = self.device()?.on.tuner.take() else {
            return Ok(());
        };
        let done = self.tune_with(&mut tuner, l, r, index);
        self.device()?.on.tuner = Some(tuner);
        done
    }

    fn tune_with(&mut self, t: &mut Tuner, l: &Launch, r: &Ready, index: usize) -> Result<()> {
        // A loop comes to a launch again.
        let again = !t.reached.insert(index);
        if !t.seen.insert((r.kernel, r.params.clone())) {
            t.alike += !again as usize;
            return Ok(());
        }
        let candidates = self.candidates(l, r)?;
        if candidates.len() < 2 {
            t.of_one_form += 1;
            return Ok(());
        }
        let why = match Instant::now() < t.deadline {
            false => Some("the time was up".to_string()),
            true => match self.measure(t, l, r, index, &candidates) {
                Ok(Some(measured)) => {
                    t.measured.push(measured);
                    None
                }
                Ok(None) => Some("the time was up before each form had three turns".into()),
                Err(e) if e.code == "K0806" => Some(e.message),
                Err(e) => return Err(e),
            },
        };
        t.untimed.extend(why.map(|why| Untimed {
            label: l.label.clone(),
            why,
        }));
        Ok(())
    }

    /// The forms that serve a launch with its arguments where they are.
    fn candidates(&mut self, l: &Launch, r: &Ready) -> Result<Vec<Candidate>> {
        let all = self.forms_of(r)?;
        let mut out = vec![];
        for (form, extent) in serving(all, &r.params).unwrap_or_default() {
            let form = form as usize;
            if let Some(maps) = self.maps(l, r, &all[form])? {
                out.push((form, extent, maps));
            }
        }
        Ok(out)
    }

    /// Gives every form its turns; none if the time is up too soon.
    fn measure(
        &mut self,
        t: &mut Tuner,
        l: &Launch,
        r: &Ready,
        index: usize,
        candidates: &[Candidate],
    ) -> Result<Option<Measured>> {
        let written = self.keep(t, l)?;
        let mut figures = vec![vec![]; candidates.len()];
        let rounds = match t.unit {
            Unit::Nanoseconds => 1 + MOST_ROUNDS,
            Unit::WarpInstructions => 1,
        };
        for round in 0..rounds {
            if round > 0 && Instant::now() >= t.deadline {
                break;
            }
            let turns = self.round(t, l, (r, index), candidates, &written)?;
            // The first one finds code and clocks cold.
            if round > 0 || t.unit == Unit::WarpInstructions {
                figures.iter_mut().zip(turns).for_each(|(f, n)| f.push(n));
            }
        }
        let turns = figures[0].len();
        if t.unit == Unit::Nanoseconds && turns < LEAST_ROUNDS {
            return Ok(None);
        }
        let all = self.forms_of(r)?;
        let forms: Vec<FormFigures> = (candidates.iter().zip(figures))
            .map(|(c, n)| figures_of(c.0, &all[c.0].passes[0].entry, n))
            .collect();
        Ok(Some(Measured {
            label: l.label.clone(),
            kernel: r.kernel,
            params: r.params.clone(),
            rounds: turns,
            best: best(&forms, t.unit),
            forms,
        }))
    }

    /// One turn of each form; their figures.
    fn round(
        &mut self,
        t: &Tuner,
        l: &Launch,
        (r, index): (&Ready, usize),
        candidates: &[Candidate],
        written: &[(u64, usize)],
    ) -> Result<Vec<u64>> {
        let mut marks: Vec<(Mark, Mark)> = vec![];
        let mut counted = vec![];
        for (form, extent, maps) in candidates {
            self.parameters(l, r, (extent, maps), index)?;
            let d = self.device()?;
            if t.flushed.at != 0 {
                d.on.device.fill(t.flushed.at, t.flushed.room, 0)?;
            }
            let before = d.on.device.mark(Lane::Compute)?;
            counted.push(self.passes(l, r, *form, extent)?);
            let d = self.device()?;
            marks.push((before, d.on.device.mark(Lane::Compute)?));
            self.put_back(t, written)?;
        }
        let d = self.device()?;
        let times: Vec<u64> = (marks.into_iter())
            .map(|(a, b)| d.on.device.elapsed(a, b))
            .collect::<Result<_>>()?;
        d.on.device.forget_marks();
        Ok(match t.unit {
            Unit::Nanoseconds => times,
            Unit::WarpInstructions => counted,
        })
    }

    /// Starts a form's passes with the parameters that are written; what they counted.
    fn passes(&mut self, l: &Launch, r: &Ready, form: usize, extent: &Extent) -> Result<u64> {
        let mut counted = 0;
        for pass in 0..extent.grids.len() {
            let counts = self.pass(l, r, (form, pass), extent)?;
            let counts = counts.as_ref().and_then(|c| c.get("warp_instructions"));
            counted += counts.and_then(|n| n.as_u64()).unwrap_or(0);
        }
        Ok(counted)
    }

    /// Keeps a copy of what a launch writes to; where that is, and bytes.
    fn keep(&mut self, t: &mut Tuner, l: &Launch) -> Result<Vec<(u64, usize)>> {
        let mut parts: Vec<(u64, usize)> = vec![];
        for (buffer, _) in &l.args[l.args.len() - l.writes as usize..] {
            let root = self.root(*buffer);
            let part = (self.device_at(root)?, self.bytes_of(root)?);
            if part.1 > 0 && !parts.contains(&part) {
                parts.push(part);
            }
        }
        let room = parts.iter().map(|p| p.1).sum();
        let d = self.device()?;
        let old = std::mem::take(&mut t.kept);
        t.kept = d.on.grown(old, room, "what a measured launch overwrites")?;
        let mut to = t.kept.at;
        for (at, bytes) in &parts {
            d.on.device.copy(*at, to, *bytes)?;
            to += *bytes as u64;
        }
        Ok(parts)
    }

    fn put_back(&mut self, t: &Tuner, parts: &[(u64, usize)]) -> Result<()> {
        let d = self.device()?;
        let mut from = t.kept.at;
        for (at, bytes) in parts {
            d.on.device.copy(from, *at, *bytes)?;
            from += *bytes as u64;
        }
        Ok(())
    }
}

fn figures_of(form: usize, entry: &str, mut turns: Vec<u64>) -> FormFigures {
    turns.sort_unstable();
    let at = |quarters: usize| turns[(turns.len() - 1) * quarters / 4];
    FormFigures {
        form: form as u32,
        entry: entry.into(),
        median: at(2),
        lower: at(1),
        upper: at(3),
    }
}

/// The fastest form, where it beats the first one by more than noise.
fn best(forms: &[FormFigures], unit: Unit) -> u32 {
    let first = &forms[0];
    let fastest = forms.iter().min_by_key(|f| f.median).unwrap_or(first);
    let beats = match unit {
        Unit::WarpInstructions => fastest.median < first.median,
        Unit::Nanoseconds => {
            let gain = fastest.median as f64 <= (1.0 - LEAST_GAIN) * first.median as f64;
            gain && fastest.upper < first.lower
        }
    };
    match beats {
        true => fastest.form,
        false => first.form,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_taken_that_beats_the_first_by_more_than_noise() {
        let of = |turns: [&[u64]; 3]| {
            let forms = turns.iter().enumerate();
            let forms: Vec<_> = forms.map(|(i, t)| figures_of(i, "k", t.to_vec())).collect();
            best(&forms, Unit::Nanoseconds)
        };
        let steady = [100, 101, 102, 103, 104];
        assert_eq!(of([&steady, &[90, 91, 92, 93, 500], &[95; 5]]), 1);
        // Faster by one part in a hundred.
        assert_eq!(of([&steady, &[101; 5], &[101; 5]]), 0);
        // Its median is far lower, but it varies as much.
        assert_eq!(of([&steady, &[50, 60, 70, 110, 120], &steady]), 0);
        assert_eq!(of([&steady, &steady, &[80; 5]]), 2);
    }
}
