//! Scatters: in order on the CPU, and with the same bits by many threads on GPUs.

use crate::gpu::Gpu;
use crate::support::{Case, Rng, bytes, check, check_on};
use kiln_ir::DType;
use kiln_kernels::*;

const UPDATES: [Option<Reducer>; 5] = [
    None,
    Some(Reducer::Sum),
    Some(Reducer::Prod),
    Some(Reducer::Max),
    Some(Reducer::Min),
];

/// A scatter to draw.
struct Scatter {
    /// Extents of the updates.
    shape: Vec<i64>,
    /// Extents of the target.
    target: Vec<i64>,
    /// Where the target's axes come from: an updates' axis, or an index of its own.
    axes: Vec<Option<u8>>,
    /// Axes along which indices differ.
    along: Vec<u8>,
    dtype: DType,
    update: Option<Reducer>,
    /// Sizes are launch parameters.
    open: bool,
    /// One index is out of range.
    bad: bool,
}

impl Scatter {
    fn case(&self, name: String, rng: &mut Rng) -> Case {
        let mut params: Vec<i64> = vec![];
        let mut size = |n: i64| match self.open && n > 1 {
            false => Size::Const(n),
            true => {
                params.push(n);
                Size::Param(params.len() as u16 - 1)
            }
        };
        let dense = |shape: &[i64]| {
            let mut strides = vec![1; shape.len()];
            for i in (1..shape.len()).rev() {
                strides[i - 1] = strides[i] * shape[i];
            }
            strides
        };
        let mut e = Exprs::new();
        let own: Vec<Size> = dense(&self.shape).into_iter().map(&mut size).collect();
        let value = e.load(0, self.dtype, Index::strided(own)).unwrap();
        let indices: Vec<i64> = self.along.iter().map(|&a| self.shape[a as usize]).collect();
        let points: i64 = indices.iter().product();
        let mut buffers = vec![rng.data(self.dtype, self.shape.iter().product::<i64>() as usize)];
        let mut args = vec![self.dtype];
        let mut index = Index::strided(vec![Size::ZERO; self.shape.len()]);
        let steps = dense(&self.target);
        for ((from, &extent), step) in self.axes.iter().zip(&self.target).zip(steps) {
            if let Some(axis) = from {
                index.strides[*axis as usize] = size(step);
                continue;
            }
            let mut strides = vec![Size::ZERO; self.shape.len()];
            for (&a, s) in self.along.iter().zip(dense(&indices)) {
                strides[a as usize] = size(s);
            }
            let arg = args.len() as u16;
            let id = e.load(arg, DType::I32, Index::strided(strides)).unwrap();
            index.gathers.push(Gathered {
                index: id,
                stride: size(step),
                extent: size(extent),
            });
            let range = 2 * extent as usize;
            let mut ids: Vec<f64> = (0..points)
                .map(|_| rng.below(range) as f64 - extent as f64)
                .collect();
            if self.bad {
                ids[rng.below(points as usize)] = extent as f64;
            }
            args.push(DType::I32);
            buffers.push(bytes(DType::I32, &ids));
        }
        let axes: Vec<Size> = self.shape.iter().map(|&n| size(n)).collect();
        let out = args.len() as u16;
        args.push(self.dtype);
        let store = Effect::Store {
            arg: out,
            index,
            value,
            update: self.update,
            when: None,
        };
        buffers.push(rng.data(self.dtype, self.target.iter().product::<i64>() as usize));
        let nest = LoopNest {
            exprs: e,
            args,
            params: params.len() as u16,
            outer: axes.len() as u8,
            axes,
            temps: vec![],
            stages: vec![Stage::new(&[], vec![store])],
        };
        Case {
            name,
            nest,
            buffers,
            params,
        }
    }
}

/// One like those that importers make: along an axis, of windows, or of rows.
fn drawn(rng: &mut Rng, open: bool) -> Scatter {
    let mut few = |from: &[i64]| rng.pick(from);
    let (a, b, c) = (few(&[3, 9, 40]), few(&[5, 16, 33]), few(&[2, 7]));
    let (i, j) = (few(&[4, 6, 11]), few(&[3, 8]));
    let (shape, target, axes, along) = match few(&[0, 1, 2, 3, 4]) {
        // Elements along the middle axis.
        0 => {
            let axes = vec![Some(0), None, Some(2)];
            (vec![c, a, b], vec![c, i, b + 1], axes, vec![0, 1, 2])
        }
        // Elements along the first axis.
        1 => (vec![a, b], vec![i, b], vec![None, Some(1)], vec![0, 1]),
        // Rows, as an embedding's gradient.
        2 => (vec![a, b], vec![i, b], vec![None, Some(1)], vec![0]),
        // Windows at two indices.
        3 => {
            let axes = vec![None, None, Some(1)];
            (vec![a, b], vec![i, j, b], axes, vec![0])
        }
        // Single elements.
        _ => (vec![a * b], vec![i * j], vec![None], vec![0]),
    };
    Scatter {
        shape,
        target,
        axes,
        along,
        dtype: rng.pick(&[DType::F32, DType::F16, DType::I64, DType::I32, DType::U8]),
        update: rng.pick(&UPDATES),
        open,
        bad: false,
    }
}

#[test]
fn many_threads_give_the_bits_of_one() {
    let mut rng = Rng(31);
    let cases: Vec<Case> = (0..60)
        .map(|i| drawn(&mut rng, true).case(format!("scatter{i}"), &mut rng))
        .collect();
    let kernels: Vec<(String, KernelSpec)> = (cases.iter())
        .map(|c| (c.name.clone(), KernelSpec::Nest(c.nest.clone())))
        .collect();
    for target in ["sm_80", "sm_90a"] {
        let mut seen: Vec<(String, Vec<Vec<u8>>)> = vec![];
        check_on(&Gpu::on(target, &kernels), &cases, &mut |name, got| {
            seen.push((name.to_string(), got.to_vec()));
        });
        let many = seen.iter().filter(|s| s.0.ends_with("_apart")).count();
        assert!(many >= 50, "{many} of 60 by many threads");
        for (name, got) in &seen {
            let one = seen.iter().find(|s| *name == format!("{}_apart", s.0));
            if let Some((_, one)) = one {
                assert!(
                    got == one,
                    "{name} on {target} has other bits than one thread"
                );
            }
        }
    }
    check(cases);
}

#[test]
fn known_sizes_need_no_second_form() {
    let mut rng = Rng(32);
    let cases: Vec<Case> = (0..40)
        .map(|i| drawn(&mut rng, false).case(format!("known{i}"), &mut rng))
        .collect();
    check(cases);
}

#[test]
fn what_is_out_of_range_is_reported_by_its_share() {
    let mut rng = Rng(33);
    let cases: Vec<Case> = (0..20)
        .map(|i| {
            let mut s = drawn(&mut rng, i % 2 == 0);
            s.bad = true;
            s.case(format!("outside{i}"), &mut rng)
        })
        .collect();
    check(cases);
}

#[test]
fn rows_that_overlap_stay_with_one_thread() {
    // Rows of ten elements at every fifth: digits that do not fit.
    let mut rng = Rng(34);
    let mut cases = vec![];
    for open in [false, true] {
        let s = Scatter {
            shape: vec![30, 10],
            target: vec![12, 10],
            axes: vec![None, Some(1)],
            along: vec![0],
            dtype: DType::F32,
            update: Some(Reducer::Sum),
            open,
            bad: false,
        };
        let mut case = s.case(format!("overlap_{open}"), &mut rng);
        if let Effect::Store { index, .. } = &mut case.nest.stages[0].effects[0] {
            index.gathers[0].stride = Size::Const(5);
        }
        cases.push(case);
    }
    let kernels: Vec<(String, KernelSpec)> = (cases.iter())
        .map(|c| (c.name.clone(), KernelSpec::Nest(c.nest.clone())))
        .collect();
    let mut names = vec![];
    check_on(&Gpu::on("sm_80", &kernels), &cases, &mut |name, _| {
        names.push(name.to_string());
    });
    assert_eq!(names, ["overlap_false", "overlap_true"]);
}
