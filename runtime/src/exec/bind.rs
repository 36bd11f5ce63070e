//! The caller's inputs: checked, in order, and what they say about sizes.

use crate::error::{Error, Result};
use crate::input::Input;
use crate::plan::{Entry, Guard};
use kiln_ir::{Binding, DType, Dim};

/// Orders the inputs as the entry wants them and binds its sizes.
pub(super) fn bind<'a>(
    e: &Entry,
    inputs: &[(&str, Input<'a>)],
) -> Result<(Vec<Input<'a>>, Binding)> {
    let names = || {
        e.inputs
            .iter()
            .map(|p| format!("`{}`", p.name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (name, _) in inputs {
        if !e.inputs.iter().any(|p| p.name == *name) {
            return Err(
                Error::input("K0711", format!("@{} has no input `{name}`", e.name))
                    .help(format!("its inputs are {}", names())),
            );
        }
    }
    let mut binding = Binding::new();
    let mut ordered = vec![];
    for p in &e.inputs {
        let Some((_, t)) = inputs.iter().find(|(n, _)| *n == p.name) else {
            return Err(
                Error::input("K0711", format!("the input `{}` is missing", p.name)).help(format!(
                    "@{} takes {}",
                    e.name,
                    names()
                )),
            );
        };
        let (dtype, shape) = (t.dtype(), t.shape());
        if dtype != p.dtype {
            return Err(Error::input(
                "K0712",
                format!("input `{}` is {}, not {}", p.name, p.dtype, dtype),
            ));
        }
        if matches!(t, Input::Numbers(t) if t.dtype == DType::Str) {
            return Err(Error::input(
                "K0712",
                format!("input `{}` is of strings, and bytes are given", p.name),
            )
            .help("give it as `Input::Strings`"));
        }
        if shape.len() != p.dims.len() {
            return Err(Error::input(
                "K0713",
                format!(
                    "input `{}` has {} axes, not {}",
                    p.name,
                    p.dims.len(),
                    shape.len()
                ),
            )
            .help(format!("its shape is {:?}", p.dims)));
        }
        let count = (shape.iter()).try_fold(1usize, |n, &d| n.checked_mul(d));
        let (want, have, what) = match t {
            Input::Numbers(t) => {
                let bytes = count.and_then(|n| p.dtype.bytes_for(n));
                (bytes, t.bytes.len(), "bytes")
            }
            Input::Strings(t) => (count, t.strings.len(), "strings"),
        };
        if want != Some(have) {
            let name = &p.name;
            return Err(Error::input(
                "K0712",
                format!("input `{name}` of shape {shape:?} comes with {have} {what}"),
            ));
        }
        for (axis, (dim, &size)) in p.dims.iter().zip(shape).enumerate() {
            if let Some(symbol) = dim.as_sym() {
                let before = *binding.entry(symbol.clone()).or_insert(size as i64);
                if before != size as i64 {
                    return Err(Error::input(
                        "K0713",
                        format!(
                            "axis {axis} of input `{}` is `{symbol}`, which is {before} elsewhere, not {size}",
                            p.name
                        ),
                    ));
                }
            }
        }
        ordered.push(*t);
    }
    for (p, t) in e.inputs.iter().zip(&ordered) {
        for (axis, (dim, &size)) in p.dims.iter().zip(t.shape()).enumerate() {
            let want = dim.eval(&binding).map_err(|err| {
                Error::input("K0713", format!("axis {axis} of input `{}`: {err}", p.name))
            })?;
            if want != size as i64 {
                return Err(Error::input(
                    "K0713",
                    format!(
                        "axis {axis} of input `{}` is {dim} = {want}, not {size}",
                        p.name
                    ),
                ));
            }
        }
    }
    Ok((ordered, binding))
}

pub(super) fn holds(g: &Guard, binding: &Binding) -> Result<bool> {
    let value = |d: &Dim| {
        d.eval(binding)
            .map_err(|e| Error::input("K0716", format!("{}: {e}", g.because)))
    };
    let (l, r) = (value(&g.left)?, value(&g.right)?);
    Ok(if g.equal { l == r } else { l <= r })
}

pub(super) fn check_guards<'a>(
    guards: impl IntoIterator<Item = &'a Guard>,
    binding: &Binding,
) -> Result<()> {
    for g in guards {
        // One on sizes that data decides is met again when it has.
        let known = g.left.eval(binding).is_ok() && g.right.eval(binding).is_ok();
        if known && !holds(g, binding)? {
            let how = if g.equal { "==" } else { "<=" };
            return Err(Error::input(
                "K0716",
                format!(
                    "{}: these sizes break {} {how} {}",
                    g.because, g.left, g.right
                ),
            ));
        }
    }
    Ok(())
}
