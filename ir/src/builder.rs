//! The builder: appends typed nodes to a region.

use crate::graph::{Graph, NodeId, Origins, RegionId, SymValue, Value};
use crate::module::Globals;
use crate::op::{Arg, InferCx, Op, Signature, TypeError, region_types};
use crate::{DType, Dim, Tensor, TensorType};
use std::sync::Arc;

/// Appends nodes to one region of a graph, inferring their types.
pub struct Builder<'a> {
    /// The graph that grows.
    pub graph: &'a mut Graph,
    /// The module's globals.
    pub globals: &'a Globals,
    /// The types of the module's other functions.
    pub callee: &'a dyn Fn(&str) -> Option<Signature>,
    /// Origins given to new nodes.
    pub origins: Origins,
    region: RegionId,
    at: Option<usize>,
}

/// No other function is known.
pub fn no_callee(_: &str) -> Option<Signature> {
    None
}

impl<'a> Builder<'a> {
    /// A builder at the end of a region.
    pub fn at_end(graph: &'a mut Graph, globals: &'a Globals, region: RegionId) -> Builder<'a> {
        Builder {
            graph,
            globals,
            callee: &no_callee,
            origins: Origins::new(),
            region,
            at: None,
        }
    }

    /// A builder that inserts before a node and inherits its origins.
    pub fn before(graph: &'a mut Graph, globals: &'a Globals, node: NodeId) -> Builder<'a> {
        let (region, origins) = (graph.node(node).parent, graph.node(node).origins.clone());
        let at = graph.position(node);
        Builder {
            graph,
            globals,
            callee: &no_callee,
            origins,
            region,
            at,
        }
    }

    /// Where nodes go.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The position at which the next node goes; none for the end.
    pub fn position(&self) -> Option<usize> {
        self.at
    }

    /// Runs `f` with the builder at the end of another region.
    pub fn in_region<T>(&mut self, region: RegionId, f: impl FnOnce(&mut Builder) -> T) -> T {
        let (r, at) = (std::mem::replace(&mut self.region, region), self.at.take());
        let out = f(self);
        (self.region, self.at) = (r, at);
        out
    }

    /// Appends an op; its results.
    pub fn push(&mut self, op: impl Into<Op>, args: &[Value]) -> Result<Vec<Value>, TypeError> {
        self.push_with_regions(op, args, vec![])
    }

    /// Appends an op that owns regions; its results.
    pub fn push_with_regions(
        &mut self,
        op: impl Into<Op>,
        args: &[Value],
        regions: Vec<RegionId>,
    ) -> Result<Vec<Value>, TypeError> {
        let op = op.into();
        let mut cx = InferCx {
            globals: self.globals,
            regions: regions
                .iter()
                .map(|&r| region_types(self.graph, self.graph.region(r)))
                .collect(),
            callee: self.callee,
            guards: vec![],
        };
        let views: Vec<Arg> = args
            .iter()
            .map(|&v| Arg {
                ty: self.graph.ty(v),
                known: self.graph.known(v),
            })
            .collect();
        let inferred = op
            .def()
            .infer(&mut cx, &views)
            .map_err(|e| TypeError(format!("{}: {e}", op.def().mnemonic())))?;
        let guards = cx.guards;
        guards.into_iter().for_each(|g| self.graph.add_guard(g));
        let (types, known): (Vec<_>, Vec<_>) =
            inferred.into_iter().map(|i| (i.ty, i.known)).unzip();
        let origins = self.origins.clone();
        let id = self.graph.insert_node(
            self.region,
            self.at,
            op,
            args.to_vec(),
            types,
            regions,
            origins,
        );
        if let Some(at) = &mut self.at {
            *at += 1;
        }
        let results = self.graph.node(id).results.clone();
        for (&v, known) in results.iter().zip(known) {
            self.graph.value_mut(v).known = known.map(Arc::new);
        }
        Ok(results)
    }

    /// Appends an op with one result.
    pub fn one(&mut self, op: impl Into<Op>, args: &[Value]) -> Result<Value, TypeError> {
        let op = op.into();
        let name = op.def().mnemonic();
        match self.push(op, args)?[..] {
            [v] => Ok(v),
            ref vs => Err(TypeError(format!(
                "{name} has {} results where one is wanted",
                vs.len()
            ))),
        }
    }

    /// The value's type.
    pub fn ty(&self, v: Value) -> TensorType {
        self.graph.ty(v).clone()
    }

    /// The value's extents.
    pub fn shape(&self, v: Value) -> Vec<Dim> {
        self.graph.shape(v).to_vec()
    }

    /// A literal.
    pub fn constant(&mut self, value: Tensor) -> Result<Value, TypeError> {
        self.one(crate::ops::source::Constant { value }, &[])
    }

    /// A scalar literal.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> Result<Value, TypeError> {
        self.constant(Tensor::scalar_f64(dtype, value))
    }

    /// Sizes as an i64 tensor.
    pub fn dims(&mut self, value: SymValue) -> Result<Value, TypeError> {
        self.one(crate::ops::source::Dims { value }, &[])
    }

    /// A global's value.
    pub fn global(&mut self, name: impl Into<Arc<str>>) -> Result<Value, TypeError> {
        self.one(crate::ops::source::Global { name: name.into() }, &[])
    }

    // Further one-op conveniences (add, mul, matmul, reshape …) stand beside the
    // ops they make, in `ops/sugar.rs`.
}
