//! Replaces composites by their expansions, so that `fuse` sees elementwise ops
//! and reductions. Attention stays where the attention kernels serve it.

use crate::{Changed, PassCx, PassError};
use kiln_ir::edit::{Rewrite, sweep};
use kiln_ir::{DType, Graph, NodeId, Op, Value};

/// Expands until nothing but primitives and kernel-served composites is left.
pub fn decompose(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    // An expansion may hold composites: their depth bounds the rounds.
    loop {
        let again = sweep(graph, cx.globals, &mut |b, n| {
            if has_kernel(b.graph, n, !cx.options.panels) {
                return Ok(Rewrite::Keep);
            }
            let node = b.graph.node(n);
            let (op, args) = (node.op.clone(), node.args.clone());
            Ok(match op.def().expand(b, &args)? {
                Some(new) => Rewrite::With(new),
                None => Rewrite::Keep,
            })
        })?;
        if !again {
            return Ok(changed);
        }
        changed = Changed::Yes;
    }
}

/// Whether a composite is lowered as a whole; `gpus`: GPUs are all that there is.
fn has_kernel(graph: &Graph, n: NodeId, gpus: bool) -> bool {
    let node = graph.node(n);
    match &node.op {
        Op::Attention(_) => {
            let constant = |v: Value| {
                graph
                    .shape(v)
                    .get(3)
                    .is_some_and(|d| d.as_const().is_some_and(|c| c > 0))
            };
            let dtype = graph.ty(node.args[0]).dtype;
            constant(node.args[0])
                && constant(node.args[2])
                && matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
        }
        // Processors have no kernel of quantized blocks: they are taken apart.
        Op::BlockMatMul(op) => {
            let dtype = |v: Value| graph.ty(v).dtype;
            let float = |t: DType| matches!(t, DType::F32 | DType::F16 | DType::BF16);
            gpus && float(dtype(node.args[0]))
                && float(dtype(node.args[2]))
                && node.args.get(3).is_none_or(|&z| dtype(z) == DType::U8)
                && op.out.is_none_or(float)
        }
        _ => false,
    }
}
