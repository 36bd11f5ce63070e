//! How a loop nest is cut into vectors and tiles, and what a launch takes.

use crate::crossed::Crossed;
use crate::expr::{ExprId, Gathered, Index, Node, Size};
use crate::nest::{Effect, LANES, LoopNest, SCRATCH_HEAD, Stage, size_dim, temp_element_bytes};
use crate::windows::MOST_POINTS;
use kiln_ir::Dim;

/// Elements of a contiguous run that one tile of an elementwise nest handles.
const ELEMENT_BLOCK: i64 = 4096;

/// Columns that one tile of a column reduction handles.
const COLUMN_BLOCK: i64 = 64;

/// Columns that one tile of a reduction of small windows handles.
const WINDOW_BLOCK: i64 = 512;

/// How a nest is cut into vectors and tiles, derived from its strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The axis whose neighbours share a vector; `None`: scalar code.
    pub vector: Option<u8>,
    /// Points of a parallel vector axis in one tile (a multiple of [`LANES`]).
    pub block: i64,
    /// The axis that is walked together with the vector axis, where one is.
    pub crossed: Option<Crossed>,
    /// Everything is one tile, in order: stores may collide.
    pub serial: bool,
}

impl Schedule {
    /// Points of a parallel axis in one tile.
    pub fn points(&self, axis: u8) -> i64 {
        match self.crossed {
            Some(c) if c.axis == axis => c.points,
            _ if self.vector == Some(axis) => self.block,
            _ => 1,
        }
    }
}

impl LoopNest {
    /// The nest's one schedule.
    pub fn schedule(&self) -> Schedule {
        let serial = self.meeting_stores().next().is_some();
        let accesses = self.accesses();
        let candidates = (0..self.axes.len() as u8)
            .filter(|&a| self.can_vectorise(a))
            .filter(|&a| !serial || self.apart(a));
        // The cheapest axis; among equals the last, whose neighbours are closest.
        let best = candidates
            .map(|a| (self.vector_cost(a, &accesses), a))
            .min_by_key(|&(cost, a)| (cost, std::cmp::Reverse(a)));
        let across = match best {
            Some((cost, _)) if !serial => self.crossed(cost),
            _ => None,
        };
        let vector = across.map_or(best.map(|(_, a)| a), |(v, _)| Some(v));
        let inner = (self.axes[self.outer as usize..].iter())
            .try_fold(1i64, |n, size| n.checked_mul(size.as_const()?));
        let has_inner = self.axes.len() > self.outer as usize;
        Schedule {
            vector,
            block: match inner {
                _ if !has_inner => ELEMENT_BLOCK,
                Some(points) if points <= MOST_POINTS => WINDOW_BLOCK,
                _ => COLUMN_BLOCK,
            },
            crossed: across.map(|(_, c)| c),
            serial,
        }
    }

    /// Stores whose points may meet: they run in order, in one tile.
    fn meeting_stores(&self) -> impl Iterator<Item = &Index> {
        self.effects().filter_map(|e| match e {
            Effect::Store { index, update, .. } => {
                let moves = |a: u8| index.gathers.iter().any(|g| self.varies_along(g.index, a));
                let meets = update.is_some() || (0..self.axes.len() as u8).any(moves);
                meets.then_some(index)
            }
            _ => None,
        })
    }

    /// Whether 16 neighbours along an axis never meet in any store, and walking
    /// it by vectors keeps the order of all other points.
    fn apart(&self, axis: u8) -> bool {
        let last = axis as usize + 1 == self.axes.len() && !self.is_inner(axis);
        last && self.meeting_stores().all(|index| {
            let fixed = |g: &Gathered| !self.varies_along(g.index, axis);
            index.stride(axis) != Size::ZERO && index.gathers.iter().all(fixed)
        })
    }

    fn can_vectorise(&self, axis: u8) -> bool {
        if !self.is_inner(axis) {
            return true;
        }
        // Scans run in order; an inner axis that no stage walks has no vectors.
        let scans = |s: &Stage| s.effects.iter().any(|e| matches!(e, Effect::Scan { .. }));
        let mut walking = self.stages.iter().filter(|s| s.axes.contains(&axis));
        walking.clone().count() > 0 && !walking.any(scans)
    }

    /// Rough cycles for 16 points along an axis, relative.
    fn vector_cost(&self, axis: u8, accesses: &[(u16, Index)]) -> u64 {
        let mut cost = 8u64;
        for (_, index) in accesses {
            cost += access_cost(self, index, axis);
        }
        let extent = self.axes[axis as usize].as_const().unwrap_or(64).max(1) as u64;
        let vectors = extent.div_ceil(LANES as u64);
        // Lanes that idle, and the tree that joins the lanes of a reduction.
        let tree = if self.is_inner(axis) { 24 } else { 0 };
        (cost * vectors + tree) * 1024 / extent
    }

    /// Whether an expression may differ between neighbours along an axis.
    pub fn varies_along(&self, root: ExprId, axis: u8) -> bool {
        self.exprs
            .reachable(&[root])
            .into_iter()
            .any(|id| match self.exprs.node(id) {
                Node::Axis(a) => *a == axis,
                Node::Load { index, .. } => index.stride(axis) != Size::ZERO,
                Node::Temp(t, _) => {
                    !self.is_inner(axis) || self.temps[*t as usize].axes.contains(&axis)
                }
                Node::Acc(..) => !self.is_inner(axis),
                _ => false,
            })
    }

    /// Work units of a launch.
    pub fn tiles(&self, params: &[Dim]) -> Dim {
        let schedule = self.schedule();
        if schedule.serial {
            return Dim::ONE;
        }
        let mut tiles = Dim::ONE;
        for axis in 0..self.outer {
            let extent = size_dim(self.axes[axis as usize], params);
            tiles = tiles
                * match schedule.points(axis) {
                    1 => extent,
                    points => extent.ceil_div(&points.into()),
                };
        }
        tiles
    }

    /// Scratch bytes that each thread of a launch needs.
    pub fn scratch_bytes(&self, params: &[Dim]) -> Dim {
        let head = SCRATCH_HEAD + self.crossed_scratch();
        (self.temp_sizes(params).into_iter()).fold(head.into(), |sum, bytes| sum + bytes)
    }

    /// Bytes of each temporary, a multiple of a cache line.
    fn temp_sizes(&self, params: &[Dim]) -> Vec<Dim> {
        let vector = self.schedule().vector;
        (self.temps.iter())
            .map(|t| {
                let mut points = Dim::ONE;
                for &a in &t.axes {
                    let extent = size_dim(self.axes[a as usize], params);
                    points = points
                        * if vector == Some(a) {
                            extent.ceil_div(&LANES.into()) * LANES.into()
                        } else {
                            extent
                        };
                }
                if vector.is_some_and(|v| !self.is_inner(v)) {
                    points = points * LANES.into();
                }
                let bytes = temp_element_bytes(t.dtype);
                (points * bytes.into()).ceil_div(&64.into()) * 64.into()
            })
            .collect()
    }

    /// Arithmetic operations and bytes moved by a launch.
    pub fn cost(&self, params: &[Dim]) -> (Dim, Dim) {
        let extent = |a: u8| size_dim(self.axes[a as usize], params);
        let outer = Dim::product(&(0..self.outer).map(extent).collect::<Vec<_>>());
        let mut flops = Dim::ZERO;
        for stage in &self.stages {
            let roots: Vec<_> = stage.effects.iter().flat_map(|e| e.roots()).collect();
            let per_point: i64 = (self.exprs.reachable(&roots).into_iter())
                .map(|id| op_cost(self.exprs.node(id)))
                .sum();
            let points = stage.axes.iter().fold(outer.clone(), |n, &a| n * extent(a));
            flops = flops + points * Dim::from(per_point + stage.effects.len() as i64);
        }
        let mut bytes = Dim::ZERO;
        for (arg, index) in self.accesses() {
            let walked = (0..self.axes.len() as u8).filter(|&a| {
                index.stride(a) != Size::ZERO
                    || index.gathers.iter().any(|g| self.varies_along(g.index, a))
            });
            let points = walked.fold(Dim::ONE, |n, a| n * extent(a));
            let size = self.args[arg as usize].size().unwrap_or(1);
            bytes = bytes + points * size.into();
        }
        (flops, bytes)
    }
}

/// Rough cycles of 16 neighbours along an axis that are read or written.
pub(crate) fn access_cost(nest: &LoopNest, index: &Index, axis: u8) -> u64 {
    let data_dependent = (index.gathers.iter()).any(|g| nest.varies_along(g.index, axis));
    match (data_dependent, index.stride(axis)) {
        (true, _) => 48,
        (false, Size::Const(0)) => 4,
        (false, Size::Const(1)) => 4,
        (false, _) => 48,
    }
}

/// Rough operations of a node: what a polynomial takes.
pub(crate) fn op_cost(node: &Node) -> i64 {
    match node {
        Node::Const { .. } | Node::Param(_) | Node::Axis(_) | Node::Acc(..) => 0,
        Node::Load { .. } | Node::Temp(..) => 0,
        Node::Unary(f, _) => {
            use kiln_ir::UnaryFn as U;
            match f {
                U::Neg | U::Abs | U::Sign | U::Floor | U::Ceil | U::Round => 1,
                U::Not | U::BitNot | U::IsNan | U::IsInf => 1,
                U::Sqrt | U::Rsqrt | U::Recip | U::RoundTf32 => 4,
                U::Exp | U::Log | U::Sigmoid | U::Tanh | U::Erf | U::NormalCdf => 16,
                U::Sin | U::Cos | U::Tan | U::Asin | U::Acos | U::Atan => 24,
                U::Sinh | U::Cosh | U::Asinh | U::Acosh | U::Atanh => 24,
            }
        }
        Node::Binary(f, ..) => {
            use kiln_ir::BinaryFn as B;
            match f {
                B::Div | B::Rem | B::Mod => 4,
                B::Pow | B::Atan2 => 40,
                B::Add | B::Sub | B::Mul | B::Min | B::Max => 1,
                B::And | B::Or | B::Xor | B::Shl | B::Shr => 1,
            }
        }
        Node::Compare(..) | Node::Select(..) | Node::Cast(..) => 1,
    }
}
