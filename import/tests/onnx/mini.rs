//! Runs a function by its ops' own meanings.

use kiln_ir::{
    Binding, ConstSource, EvalCx, EvalError, GlobalKind, Graph, Module, RegionId, Tensor, Value,
};
use std::cell::RefCell;
use std::collections::HashMap;

pub fn run(module: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let graph = module
        .function("forward")
        .ok_or_else(|| EvalError("no forward".into()))?;
    let binding = RefCell::new(Binding::new());
    // Bare symbols are bound by the inputs.
    for (&p, t) in graph.body().params.iter().zip(inputs) {
        if graph.ty(p).dtype != t.dtype() || graph.shape(p).len() != t.shape().len() {
            return Err(EvalError(format!("input {} is {:?}", graph.ty(p), t)));
        }
        for (d, &n) in graph.shape(p).iter().zip(t.shape()) {
            if let Some(s) = d.as_sym() {
                binding.borrow_mut().insert(s.clone(), n as i64);
            }
        }
    }
    let mut env = HashMap::new();
    region(module, graph, &binding, Graph::BODY, inputs, &mut env)
}

fn region(
    module: &Module,
    graph: &Graph,
    binding: &RefCell<Binding>,
    r: RegionId,
    args: &[Tensor],
    env: &mut HashMap<Value, Tensor>,
) -> Result<Vec<Tensor>, EvalError> {
    let reg = graph.region(r);
    reg.params.iter().zip(args).for_each(|(&p, t)| {
        env.insert(p, t.clone());
    });
    for &n in &reg.nodes {
        let node = graph.node(n);
        let args: Vec<Tensor> = node.args.iter().map(|v| env[v].clone()).collect();
        let views: Vec<&Tensor> = args.iter().collect();
        let inner = RefCell::new(env.clone());
        let cx = EvalCx {
            binding,
            global: &|name: &str| match module.globals.get(name).map(|g| &g.kind) {
                Some(GlobalKind::Const(ConstSource::Tensor(t))) => Ok(t.clone()),
                _ => Err(EvalError(format!("no global {name}"))),
            },
            region: &|i, args| {
                region(
                    module,
                    graph,
                    binding,
                    node.regions[i],
                    args,
                    &mut inner.borrow_mut(),
                )
            },
            region_results: &|i| {
                let r = graph.region(node.regions[i]);
                r.results.iter().map(|&v| graph.ty(v).clone()).collect()
            },
            call: &|_, _| Err(EvalError("no calls here".into())),
        };
        let results = node.op.def().eval(&cx, &views).map_err(|e| {
            let origin = node
                .origins
                .iter()
                .next()
                .map(|o| o.node.to_string())
                .unwrap_or_default();
            EvalError(format!("{} ({origin}): {e}", node.op.def().mnemonic()))
        })?;
        for (&v, t) in node.results.iter().zip(results) {
            // What inference promised must hold.
            let promised = graph.ty(v);
            if promised.dtype != t.dtype() || promised.shape.len() != t.shape().len() {
                return Err(EvalError(format!(
                    "{}: promised {promised}, made {t:?}",
                    node.op.def().mnemonic()
                )));
            }
            for (d, &n) in promised.shape.iter().zip(t.shape()) {
                if let Ok(p) = d.eval(&binding.borrow())
                    && p != n as i64
                {
                    return Err(EvalError(format!(
                        "{}: promised {promised}, made {t:?}",
                        node.op.def().mnemonic()
                    )));
                }
            }
            env.insert(v, t);
        }
    }
    Ok(reg.results.iter().map(|v| env[v].clone()).collect())
}
