//! Batches of inputs on the disk.

use crate::model::Failure;
use kiln::import::{Interface, read_data_set};
use kiln::ir::{DType, Graph, Tensor};
use kiln::runtime::npy;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Arrays by the names of inputs.
    Npz(PathBuf),
    /// The one input of a model that has one.
    Npy(PathBuf),
    /// A folder of `input_K.pb`.
    TestData(PathBuf),
}

impl Source {
    pub fn path(&self) -> &Path {
        match self {
            Source::Npz(p) | Source::Npy(p) | Source::TestData(p) => p,
        }
    }

    fn of(path: &Path) -> Option<Source> {
        let path = path.to_path_buf();
        match path.extension().and_then(|e| e.to_str()) {
            _ if path.is_dir() => {
                (path.join("input_0.pb").exists()).then_some(Source::TestData(path))
            }
            Some("npz") => Some(Source::Npz(path)),
            Some("npy") => Some(Source::Npy(path)),
            _ => None,
        }
    }
}

/// What to give.
const FORMS: &str = "give .npz files (each one batch, arrays by the names of inputs), folders \
                     test_data_set_N of input_K.pb, or folders of such";

/// The batches that files and folders hold, in the order of the names in each folder.
pub fn sources(paths: &[PathBuf]) -> Result<Vec<Source>, Failure> {
    let mut all = vec![];
    for path in paths {
        let name = path.display();
        if !path.exists() {
            return Err(Failure::input(format!(
                "K0740: cannot open {name}: there is no such file or folder\n  help: {FORMS}"
            )));
        }
        if let Some(one) = Source::of(path) {
            all.push(one);
            continue;
        }
        let unreadable =
            |e: std::io::Error| Failure::input(format!("K0740: cannot read {name}: {e}"));
        let mut found = vec![];
        if path.is_dir() {
            for entry in std::fs::read_dir(path).map_err(unreadable)? {
                found.extend(Source::of(&entry.map_err(unreadable)?.path()));
            }
            found.sort_by(|a, b| a.path().cmp(b.path()));
        }
        if found.is_empty() {
            let what = if path.is_dir() {
                "holds no batch"
            } else {
                "is no batch of inputs"
            };
            return Err(Failure::input(format!(
                "K0740: {name} {what}\n  help: {FORMS}"
            )));
        }
        all.append(&mut found);
    }
    match all.is_empty() {
        true => Err(Failure::usage(format!("no calibration data: {FORMS}"))),
        false => Ok(all),
    }
}

/// Reads batches as a model takes them.
pub struct Reader<'a> {
    pub function: &'a Graph,
    pub interface: &'a Interface,
    /// Arrays that no input is named after, said once each.
    pub strays: BTreeSet<String>,
}

impl Reader<'_> {
    /// A batch, in the order of the model's inputs. Numbers of another type are
    /// converted if each keeps its value (floats may round).
    pub fn read(&mut self, source: &Source) -> Result<Vec<(String, Tensor)>, Failure> {
        let path = source.path();
        let file = path.display().to_string();
        let mut given: Vec<(String, Tensor)> = match source {
            Source::Npz(_) => (npy::read_npz(path)?.into_iter())
                .map(|(name, a)| Ok((name.clone(), a.tensor(&format!("{file}: {name}"))?)))
                .collect::<Result<_, Failure>>()?,
            Source::Npy(_) => vec![("arr_0".into(), npy::read(path)?.tensor(&file)?)],
            Source::TestData(_) => {
                let set = read_data_set(path, self.interface);
                set.map_err(|d| Failure::input(d.to_string()))?.inputs
            }
        };
        let ports = &self.function.params;
        let named = |name: &str| ports.iter().any(|p| *p.name == *name);
        let any = given.iter().any(|(name, _)| named(name));
        let by_order = matches!(source, Source::TestData(_))
            || given.iter().all(|(name, _)| name.starts_with("arr_"));
        if !any && by_order && given.len() == ports.len() {
            // Without names of their own: in the model's order.
            let pairs = given.iter_mut().zip(ports);
            pairs.for_each(|((name, _), port)| *name = port.name.to_string());
        }
        let mut batch = vec![];
        for (port, &value) in ports.iter().zip(&self.function.body().params) {
            let Some(at) = given.iter().position(|(name, _)| *name == *port.name) else {
                let names: Vec<&str> = given.iter().map(|(n, _)| &n[..]).collect();
                return Err(Failure::input(format!(
                    "K0711: {file}: the input `{}` is missing\n  help: the file has {}; name its \
                     arrays as the model's inputs are (kiln inspect)",
                    port.name,
                    if names.is_empty() {
                        "nothing".into()
                    } else {
                        names.join(", ")
                    }
                )));
            };
            let (name, t) = given.swap_remove(at);
            let want = self.function.ty(value).dtype;
            let t = converted(t, want).map_err(|why| {
                Failure::input(format!("K0745: {file}: the input `{name}` {why}"))
            })?;
            batch.push((name, t));
        }
        for (name, _) in given {
            if self.strays.insert(name.clone()) {
                eprintln!("note: {file}: `{name}` is no input of the model and is not used");
            }
        }
        Ok(batch)
    }
}

/// A tensor in another element type.
fn converted(t: Tensor, to: DType) -> Result<Tensor, String> {
    let from = t.dtype();
    if from == to {
        return Ok(t);
    }
    let whole = |d: DType| d.is_int() || d == DType::Bool;
    let refused = Err(format!(
        "is {from} where the model takes {to}\n  help: convert the array to {to}"
    ));
    let made = match (whole(from), whole(to)) {
        (true, true) => Tensor::from_i64(to, t.shape(), &t.to_i64()),
        (_, false) if to.is_float() && (whole(from) || from.is_float()) => {
            Tensor::from_f64(to, t.shape(), &t.to_f64())
        }
        _ => return refused,
    };
    let made = made.map_err(|e| e.to_string())?;
    let exact = !whole(from) || (0..t.len()).all(|i| t.get_f64(i) == made.get_f64(i));
    if exact { Ok(made) } else { refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_keep_their_values_or_are_refused() {
        let t = |v: &[i64]| Tensor::from_i64(DType::I64, [v.len()], v).unwrap();
        assert_eq!(
            converted(t(&[1, -2]), DType::I32).unwrap().to_i64(),
            [1, -2]
        );
        assert!(converted(t(&[300]), DType::U8).is_err());
        assert_eq!(converted(t(&[3]), DType::F32).unwrap().to_f64(), [3.0]);
        let half = Tensor::from_f64(DType::F64, [1], &[0.5]).unwrap();
        assert_eq!(converted(half.clone(), DType::F32).unwrap().to_f64(), [0.5]);
        assert!(converted(half, DType::I64).is_err());
    }
}
