//! What was measured on devices: which form of a kernel is the fastest one for launches
//! with certain parameters, where that is not the first one that serves them.

use crate::gpu::GpuKernel;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A measured choice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tuned {
    /// The name of the device that it was measured on; it holds for devices of that name.
    pub device: String,
    /// The kernel.
    pub kernel: u32,
    /// The launch's integer parameters.
    pub params: Vec<i64>,
    /// The number of the form that such launches take.
    pub form: u32,
}

impl Tuned {
    fn key(&self) -> (&str, u32, &[i64]) {
        (&self.device, self.kernel, &self.params)
    }
}

/// Integer parameters that a launch has at most, far more than any has.
const MOST_PARAMS: usize = 256;

/// Checks a table against the forms of each kernel; what is wrong.
pub(crate) fn validate(table: &[Tuned], kernels: &[Vec<GpuKernel>]) -> Result<(), String> {
    for t in table {
        let Some(forms) = kernels.get(t.kernel as usize) else {
            let count = kernels.len();
            return Err(format!("it names kernel {} of {count}", t.kernel));
        };
        if t.form as usize >= forms.len() {
            let (form, count) = (t.form, forms.len());
            return Err(format!(
                "it names form {form} of {count} of kernel {}",
                t.kernel
            ));
        }
        if t.device.is_empty() || t.params.len() > MOST_PARAMS {
            let count = t.params.len();
            return Err(format!(
                "a row of device `{}` with {count} parameters",
                t.device
            ));
        }
    }
    match table.windows(2).all(|w| w[0].key() < w[1].key()) {
        true => Ok(()),
        false => Err("its rows are not in ascending order, each once".into()),
    }
}

/// A table with newer rows in place of those of `device` whose launches were measured
/// anew; `measured` are their kernels and parameters.
pub(crate) fn merged(
    table: &[Tuned],
    device: &str,
    measured: &[(u32, Vec<i64>)],
    newer: Vec<Tuned>,
) -> Vec<Tuned> {
    let again = |t: &&Tuned| {
        let same = |(kernel, params): &(u32, Vec<i64>)| t.kernel == *kernel && t.params == *params;
        t.device == device && measured.iter().any(same)
    };
    let mut rows: Vec<Tuned> = table.iter().filter(|t| !again(t)).cloned().collect();
    rows.extend(newer);
    rows.sort();
    rows
}

/// The forms that launches try first, by kernel and parameters: looked up where a launch's
/// sizes are bound, not when it starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preferred(HashMap<(u32, Vec<i64>), Vec<u32>>);

impl Preferred {
    /// Those of the devices whose name `holds`.
    pub(crate) fn of(table: &[Tuned], holds: impl Fn(&str) -> bool) -> Preferred {
        let mut found: HashMap<_, Vec<u32>> = HashMap::new();
        for t in table.iter().filter(|t| holds(&t.device)) {
            let key = (t.kernel, t.params.clone());
            found.entry(key).or_default().push(t.form);
        }
        Preferred(found)
    }

    /// The forms that are tried before all others.
    pub(crate) fn first(&self, kernel: u32, params: &[i64]) -> &[u32] {
        if self.0.is_empty() {
            return &[];
        }
        self.0
            .get(&(kernel, params.to_vec()))
            .map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: &str, kernel: u32, params: &[i64], form: u32) -> Tuned {
        Tuned {
            device: device.into(),
            kernel,
            params: params.to_vec(),
            form,
        }
    }

    #[test]
    fn newer_rows_take_the_place_of_what_was_measured_anew() {
        let table = [
            row("A", 0, &[1], 1),
            row("A", 0, &[2], 1),
            row("B", 0, &[1], 2),
        ];
        // Of the first launch the first form is the best one now.
        let measured = [(0, vec![1]), (1, vec![])];
        let newer = vec![row("A", 1, &[], 1)];
        let want = [
            row("A", 0, &[2], 1),
            row("A", 1, &[], 1),
            row("B", 0, &[1], 2),
        ];
        assert_eq!(merged(&table, "A", &measured, newer), want);
    }

    #[test]
    fn devices_have_their_own_rows() {
        let table = [row("A", 0, &[1], 1), row("B", 0, &[1], 2)];
        let a = Preferred::of(&table, |d| d == "A");
        assert_eq!((a.first(0, &[1]), a.first(0, &[2])), (&[1][..], &[][..]));
        let all = Preferred::of(&table, |_| true);
        assert_eq!(all.first(0, &[1]), [1, 2]);
    }
}
