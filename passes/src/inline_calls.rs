//! Puts the bodies of called functions in the place of the calls.
//!
//! ```text
//! func @block(%x: f32[n, 4]) { … }
//! %1 = call %0 {function = "block"}      →      the nodes of @block, over %0
//! ```
//!
//! A callee with state or with sizes of its own stays a call, which lowering reports.

use crate::{Changed, PassCx, PassError};
use kiln_ir::edit::inline_call;
use kiln_ir::{Graph, NodeId, Op};

/// Calls inside called bodies are opened in turn, up to this depth: functions do not
/// recurse, and a chain of them this long is a mistake.
const DEPTH: usize = 64;

/// Inlines every call.
pub fn inline_calls(cx: &mut PassCx, graph: &mut Graph) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    for _ in 0..DEPTH {
        let is_call = |n: &NodeId| matches!(graph.node(*n).op, Op::Call(_));
        let calls: Vec<NodeId> = graph.nodes_in_order().into_iter().filter(is_call).collect();
        let mut any = false;
        for n in calls {
            let Op::Call(call) = &graph.node(n).op else {
                continue;
            };
            let callee = cx.functions.iter().find(|f| f.name == call.function);
            if let Some(callee) = callee {
                any |= inline_call(graph, cx.globals, n, callee)?;
            }
        }
        if !any {
            break;
        }
        changed = Changed::Yes;
    }
    Ok(changed)
}
