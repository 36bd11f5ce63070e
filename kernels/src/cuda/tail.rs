//! What a family does with its sums: its epilogue as an elementwise nest over them.

use super::vectors;
use crate::Size;
use crate::emit_nest::NestEmitter;
use crate::expr::{ExprId, Exprs, Index};
use crate::lower::ExprCx;
use crate::nest::{Effect, LoopNest, Stage};
use crate::schedule::Schedule;
use kiln_codegen::{Emitter, Val};
use kiln_ir::DType;

/// An epilogue: the last of `args` gets `value` at `index`, for every point of the axes;
/// `Acc(0)` is the point's sum.
pub(super) fn nest(
    exprs: &Exprs,
    args: &[DType],
    params: u16,
    axes: Vec<Size>,
    (index, value): (&Index, ExprId),
) -> LoopNest {
    LoopNest {
        exprs: exprs.clone(),
        args: args.to_vec(),
        params,
        outer: axes.len() as u8,
        axes,
        temps: vec![],
        stages: vec![Stage {
            axes: vec![],
            effects: vec![Effect::Store {
                arg: args.len() as u16 - 1,
                index: index.clone(),
                value,
                update: None,
                when: None,
            }],
        }],
    }
}

/// An emitter of an epilogue.
pub(super) fn emitter<'a>(e: &mut Emitter, nest: &'a LoopNest, cx: ExprCx<'a>) -> NestEmitter<'a> {
    let extents: Vec<Val> = nest.axes.iter().map(|&s| cx.size(e, s)).collect();
    let mut cx = cx;
    cx.axes = vec![None; nest.axes.len()];
    NestEmitter {
        nest,
        schedule: Schedule {
            vector: None,
            block: 1,
            crossed: None,
            serial: false,
        },
        extents,
        temp_bases: vec![],
        group: None,
        cx,
    }
}

/// Neighbours along the last axis that are stored together, of `most` at most.
pub(super) fn run(nest: &LoopNest, most: u32) -> u32 {
    vectors::run(nest).min(most)
}
