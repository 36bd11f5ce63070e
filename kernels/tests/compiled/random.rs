//! Random nests: shapes, strides, types and expressions.

use crate::support::{Case, Rng, check};
use kiln_ir::{BinaryFn, CompareFn, DType, UnaryFn};
use kiln_kernels::*;

struct Gen {
    rng: Rng,
    nest: LoopNest,
    params: Vec<i64>,
    extents: Vec<i64>,
    buffers: Vec<Vec<u8>>,
}

const TYPES: [DType; 12] = [
    DType::F32,
    DType::F32,
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F64,
    DType::I64,
    DType::I32,
    DType::I8,
    DType::U8,
    DType::U64,
    DType::Bool,
];

impl Gen {
    fn new(seed: u64) -> Gen {
        let mut g = Gen {
            rng: Rng(seed),
            nest: LoopNest::default(),
            params: vec![],
            extents: vec![],
            buffers: vec![],
        };
        let (outer, inner) = (g.rng.below(4), g.rng.below(3));
        g.nest.outer = outer as u8;
        for _ in 0..outer + inner {
            let n = g.rng.pick(&[1, 2, 3, 5, 7, 16, 17, 21]);
            g.extents.push(n);
            let size = g.size(n);
            g.nest.axes.push(size);
        }
        g
    }

    /// A number as a constant or a parameter.
    fn size(&mut self, n: i64) -> Size {
        if n < 2 || self.rng.below(3) > 0 {
            return Size::Const(n);
        }
        self.params.push(n);
        self.nest.params += 1;
        Size::Param(self.params.len() as u16 - 1)
    }

    /// An index into a dense buffer over these axes in a random order, and the
    /// buffer's length.
    fn index(&mut self, axes: &[u8]) -> (Index, usize) {
        let mut order = axes.to_vec();
        if self.rng.below(3) == 0 {
            for i in (1..order.len()).rev() {
                let j = self.rng.below(i + 1);
                order.swap(i, j);
            }
        }
        let mut strides = vec![Size::ZERO; self.nest.axes.len()];
        let mut step = 1;
        for &a in order.iter().rev() {
            strides[a as usize] = self.size(step);
            step *= self.extents[a as usize];
        }
        let offset = self.rng.below(3) as i64;
        let index = Index {
            offset: self.size(offset),
            ..Index::strided(strides)
        };
        (index, (step + offset) as usize)
    }

    fn subset(&mut self, axes: &[u8]) -> Vec<u8> {
        axes.iter()
            .copied()
            .filter(|_| self.rng.below(4) > 0)
            .collect()
    }

    fn load(&mut self, axes: &[u8]) -> ExprId {
        let t = self.rng.pick(&TYPES);
        let axes = self.subset(axes);
        let (index, n) = self.index(&axes);
        let arg = self.nest.args.len() as u16;
        self.nest.args.push(t);
        let data = self.rng.data(t, n);
        self.buffers.push(data);
        self.nest.exprs.load(arg, t, index).unwrap()
    }

    fn expr(&mut self, t: DType, axes: &[u8], known: &[ExprId], depth: usize) -> ExprId {
        if depth == 0 {
            let leaf = match self.rng.below(6) {
                0 if !axes.is_empty() => {
                    let a = self.rng.pick(axes);
                    self.nest.exprs.axis(a)
                }
                1 => {
                    let v = self.rng.below(5) as i64 + 1;
                    return self.nest.exprs.int(t, v).unwrap();
                }
                2 | 3 if !known.is_empty() => self.rng.pick(known),
                _ => self.load(axes),
            };
            return self.nest.exprs.cast(t, leaf).unwrap();
        }
        let a = self.expr(t, axes, known, depth - 1);
        let b = self.expr(t, axes, known, depth - 1);
        use BinaryFn as B;
        let choice = self.rng.below(8);
        let e = &mut self.nest.exprs;
        if choice == 0 {
            let less = e.compare(CompareFn::Lt, a, b).unwrap();
            return e.select(less, b, a).unwrap();
        }
        let f = match t {
            DType::Bool => [B::And, B::Or, B::Xor, B::Max][choice % 4],
            _ if t.is_float() => [B::Add, B::Sub, B::Mul, B::Max, B::Min][choice % 5],
            _ => [
                B::Add,
                B::Sub,
                B::Mul,
                B::Max,
                B::Min,
                B::Div,
                B::Mod,
                B::Xor,
            ][choice],
        };
        let r = e.binary(f, a, b).unwrap();
        match choice {
            3 if t.is_float() => e.unary(UnaryFn::Tanh, r).unwrap(),
            4 if t.is_float() => e.unary(UnaryFn::Sigmoid, r).unwrap(),
            5 if t != DType::Bool => e.unary(UnaryFn::Abs, r).unwrap(),
            _ => r,
        }
    }

    fn store(&mut self, axes: &[u8], value: ExprId) -> Effect {
        let t = self.nest.exprs.dtype(value);
        let (index, n) = self.index(axes);
        let arg = self.nest.args.len() as u16;
        self.nest.args.push(t);
        self.buffers.push(vec![0; n * t.size().unwrap()]);
        Effect::Store {
            arg,
            index,
            value,
            update: None,
            when: None,
        }
    }

    fn build(mut self, name: String) -> Case {
        let all: Vec<u8> = (0..self.nest.axes.len() as u8).collect();
        let outer: Vec<u8> = all[..self.nest.outer as usize].to_vec();
        let inner: Vec<u8> = all[self.nest.outer as usize..].to_vec();
        let mut known = vec![];
        let mut temps = vec![];
        for i in 0..self.rng.below(3) as u16 {
            if inner.is_empty() {
                break;
            }
            let t = self.rng.pick(&[
                DType::F32,
                DType::F32,
                DType::F16,
                DType::F64,
                DType::I32,
                DType::I64,
            ]);
            let value = self.expr(t, &all, &known, 2);
            let by = self.rng.pick(&[Reducer::Sum, Reducer::Max, Reducer::Min]);
            let mut effects = vec![Effect::Reduce { acc: i, by, value }];
            if self.rng.below(2) == 0 {
                let temp = self.nest.temps.len() as u16;
                self.nest.temps.push(Temp {
                    dtype: t,
                    axes: inner.clone(),
                });
                effects.push(Effect::Keep { temp, value });
                temps.push(self.nest.exprs.temp(temp, t).unwrap());
            }
            self.nest.stages.push(Stage {
                axes: inner.clone(),
                effects,
            });
            known.push(self.nest.exprs.acc(i, t).unwrap());
        }
        for k in 0..1 + self.rng.below(2) {
            let t = self.rng.pick(&TYPES);
            let whole = self.rng.below(3) > 0 && !inner.is_empty() || known.is_empty();
            let (axes, list) = if whole {
                (&all, inner.clone())
            } else {
                (&outer, vec![])
            };
            let mut seen = known.clone();
            if whole {
                seen.extend(&temps);
            }
            let value = self.expr(t, axes, &seen, 1 + k);
            let effect = self.store(axes, value);
            self.nest.stages.push(Stage {
                axes: list,
                effects: vec![effect],
            });
        }
        Case {
            name,
            nest: self.nest,
            buffers: self.buffers,
            params: self.params,
        }
    }
}

#[test]
fn random_nests_compute_what_the_reference_does() {
    let cases = (0..120)
        .map(|seed| Gen::new(seed).build(format!("random_{seed}")))
        .collect();
    check(cases);
}

#[test]
fn simplified_nests_compute_the_same() {
    let cases = (1000..1060).map(|seed| {
        let mut case = Gen::new(seed).build(format!("simplified_{seed}"));
        let dims: Vec<_> = case.params.iter().map(|&p| kiln_ir::Dim::from(p)).collect();
        let before = case.buffers.clone();
        let mut want = before.clone();
        let expected = reference::run(&case.nest, &mut want, &case.params);
        let (nest, dims) = simplify(&case.nest, &dims).unwrap();
        assert!(dims.is_empty(), "constants need no parameters");
        let mut got = before;
        let status = reference::run(&nest, &mut got, &[]);
        assert_eq!(status, expected);
        assert_eq!(got, want, "{:?}", case.nest);
        case.nest = nest;
        case.params = vec![];
        case
    });
    check(cases.collect());
}
