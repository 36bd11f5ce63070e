//! From a module whose functions are groups to a plan: buffers, steps, kernels.

use super::group;
use kiln_ir::{
    ConstSource, Dim, GlobalKind, Graph, Module, NodeId, Op, PortKind, RegionId, Relation, Tensor,
    Value,
};
use kiln_kernels::KernelSpec;
use kiln_runtime::plan::{
    self, Buffer, Entry, Global, GlobalData, Launch, Loop, PLAN_VERSION, Place, Port, Program,
    Step, Variant,
};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A part of a model that does not lower.
#[derive(Clone, Debug)]
pub struct LowerError {
    /// The function.
    pub function: String,
    /// The operation.
    pub op: String,
    /// Nodes of the model that it stems from.
    pub origins: Vec<String>,
    /// What is missing.
    pub message: String,
}

impl fmt::Display for LowerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K0503: @{}: `{}`", self.function, self.op)?;
        if !self.origins.is_empty() {
            write!(f, " (from {})", self.origins.join(", "))?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for LowerError {}

/// A plan whose sections are still to be written.
pub struct Lowered {
    /// The plan; section numbers are not set yet.
    pub program: Program,
    /// Each kernel's symbol and problem, in the plan's order.
    pub kernels: Vec<(String, KernelSpec)>,
    /// Where each of the plan's globals comes from.
    pub contents: Vec<Contents>,
}

/// Where the bytes of a global of the plan come from.
#[derive(Clone, Debug)]
pub enum Contents {
    /// A global of the module.
    Global(Arc<str>),
    /// A literal.
    Literal(Tensor),
}

/// Lowers every function of a module.
pub fn lower(module: &Module) -> Result<Lowered, Vec<LowerError>> {
    let mut l = Lowerer {
        module,
        program: Program {
            version: PLAN_VERSION,
            ..Program::default()
        },
        kernels: vec![],
        by_spec: HashMap::new(),
        contents: vec![],
        globals: BTreeMap::new(),
        errors: vec![],
    };
    for f in &module.functions {
        let entry = FunctionLowerer::lower(&mut l, f);
        l.program.entries.push(entry);
    }
    if !l.errors.is_empty() {
        return Err(l.errors);
    }
    l.program.kernels = l.kernels.iter().map(|k| k.0.clone()).collect();
    Ok(Lowered {
        program: l.program,
        kernels: l.kernels,
        contents: l.contents,
    })
}

struct Lowerer<'m> {
    module: &'m Module,
    program: Program,
    kernels: Vec<(String, KernelSpec)>,
    by_spec: HashMap<KernelSpec, u32>,
    contents: Vec<Contents>,
    globals: BTreeMap<Arc<str>, u32>,
    errors: Vec<LowerError>,
}

impl Lowerer<'_> {
    /// The number of a kernel: equal problems share one.
    fn kernel(&mut self, spec: KernelSpec) -> u32 {
        if let Some(&i) = self.by_spec.get(&spec) {
            return i;
        }
        let mut hash = DefaultHasher::new();
        spec.hash(&mut hash);
        let family = match &spec {
            KernelSpec::Nest(_) => "nest",
            KernelSpec::MatMul(_) => "matmul",
            KernelSpec::Attention(_) => "attention",
        };
        let index = self.kernels.len() as u32;
        self.kernels.push((
            format!("kiln_{family}_{:016x}", hash.finish()),
            spec.clone(),
        ));
        self.by_spec.insert(spec, index);
        index
    }

    /// The number of a module's global in the plan.
    fn global(&mut self, name: &Arc<str>) -> Option<u32> {
        if let Some(&i) = self.globals.get(name) {
            return Some(i);
        }
        let global = self.module.globals.get(name)?;
        let shape = global.ty.const_shape()?.iter().map(|&d| d as u64).collect();
        let (state, checkpoint) = match &global.kind {
            GlobalKind::Const(_) => (false, None),
            GlobalKind::State { checkpoint, .. } => {
                (true, checkpoint.as_ref().map(|c| c.to_string()))
            }
        };
        let index = self.program.globals.len() as u32;
        self.program.globals.push(Global {
            name: name.to_string(),
            dtype: global.ty.dtype,
            shape,
            bytes: global.ty.bytes().as_const()? as u64,
            data: GlobalData::Section(0),
            state,
            checkpoint,
        });
        self.contents.push(Contents::Global(name.clone()));
        self.globals.insert(name.clone(), index);
        Some(index)
    }

    fn literal(&mut self, t: &Tensor) -> u32 {
        let index = self.program.globals.len() as u32;
        self.program.globals.push(Global {
            name: format!("literal.{index}"),
            dtype: t.dtype(),
            shape: t.shape().iter().map(|&d| d as u64).collect(),
            bytes: t.bytes().len() as u64,
            data: GlobalData::Section(0),
            state: false,
            checkpoint: None,
        });
        self.contents.push(Contents::Literal(t.clone()));
        index
    }
}

struct FunctionLowerer<'a, 'm> {
    outer: &'a mut Lowerer<'m>,
    graph: &'a Graph,
    buffers: Vec<Buffer>,
    of: BTreeMap<Value, u32>,
    /// Values that something after their consumer still needs are copied first.
    last_use: BTreeMap<Value, NodeId>,
}

impl<'a, 'm> FunctionLowerer<'a, 'm> {
    fn lower(outer: &'a mut Lowerer<'m>, graph: &'a Graph) -> Entry {
        let mut last_use = BTreeMap::new();
        for n in graph.nodes_in_order() {
            graph.node(n).args.iter().for_each(|&v| {
                last_use.insert(v, n);
            });
        }
        for r in 0..graph.region_count() {
            graph
                .region(RegionId(r as u32))
                .results
                .iter()
                .for_each(|v| {
                    last_use.remove(v);
                });
        }
        let mut l = FunctionLowerer {
            outer,
            graph,
            buffers: vec![],
            of: BTreeMap::new(),
            last_use,
        };
        let mut inputs = vec![];
        for (port, &v) in graph.params.iter().zip(&graph.body().params) {
            let place = match &port.kind {
                PortKind::Caller => Place::Input,
                PortKind::State(name) => match l.outer.global(name) {
                    Some(g) => Place::Global(g),
                    None => {
                        l.fail(None, format!("the state @{name} has no constant shape"));
                        Place::Input
                    }
                },
            };
            let b = l.buffer(graph.ty(v).bytes(), place);
            l.of.insert(v, b);
            if port.kind == PortKind::Caller {
                inputs.push(l.port(&port.name, v, b));
            }
        }
        let mut steps = l.region(Graph::BODY);
        // State results go home; those that are other state values by way of
        // copies, so that none is overwritten before it is read.
        let mut outputs = vec![];
        let mut homes = vec![];
        for (port, &v) in graph.results.iter().zip(&graph.body().results) {
            let Some(&b) = l.of.get(&v) else { continue };
            match &port.kind {
                PortKind::Caller => outputs.push(l.port(&port.name, v, b)),
                PortKind::State(name) => {
                    if let Some(g) = l.outer.global(name) {
                        homes.push((b, g, graph.ty(v).bytes()));
                    }
                }
            }
        }
        let mut staged = vec![];
        for (b, g, bytes) in homes {
            let base = l.base(b);
            match l.buffers[base as usize].place {
                Place::Global(same) if same == g => {}
                Place::Global(_) => {
                    let copy = l.buffer(bytes.clone(), Place::Arena);
                    steps.push(Step::Copy {
                        from: b,
                        to: copy,
                        bytes: bytes.clone(),
                    });
                    staged.push((copy, g, bytes));
                }
                _ => staged.push((b, g, bytes)),
            }
        }
        for (b, g, bytes) in staged {
            let home = l.buffer(bytes.clone(), Place::Global(g));
            steps.push(Step::Copy {
                from: b,
                to: home,
                bytes,
            });
        }
        l.place_outputs(&outputs);
        let returned: Vec<u32> = outputs.iter().map(|p| p.buffer).collect();
        l.liveness(&steps, &returned);
        let guards = graph
            .guards
            .iter()
            .map(|g| plan::Guard {
                left: g.left.clone(),
                equal: g.relation == Relation::Eq,
                right: g.right.clone(),
                because: g.because.clone(),
            })
            .collect();
        Entry {
            name: graph.name.to_string(),
            inputs,
            outputs,
            guards,
            buffers: l.buffers,
            steps,
        }
    }

    fn port(&self, name: &str, v: Value, buffer: u32) -> Port {
        let ty = self.graph.ty(v);
        Port {
            name: name.to_string(),
            dtype: ty.dtype,
            dims: ty.shape.clone(),
            buffer,
        }
    }

    fn fail(&mut self, n: Option<NodeId>, message: impl Into<String>) {
        let (op, origins) = match n {
            Some(n) => {
                let node = self.graph.node(n);
                let origins = node
                    .origins
                    .iter()
                    .take(4)
                    .map(|o| o.node.to_string())
                    .collect();
                (describe(self.graph, n), origins)
            }
            None => ("function".into(), vec![]),
        };
        self.outer.errors.push(LowerError {
            function: self.graph.name.to_string(),
            op,
            origins,
            message: message.into(),
        });
    }

    fn buffer(&mut self, bytes: Dim, place: Place) -> u32 {
        self.buffers.push(Buffer {
            bytes,
            place,
            live: (0, 0),
        });
        self.buffers.len() as u32 - 1
    }

    fn result(&mut self, v: Value) -> u32 {
        let b = self.buffer(self.graph.ty(v).bytes(), Place::Arena);
        self.of.insert(v, b);
        b
    }

    /// The buffer whose memory this one is.
    fn base(&self, mut b: u32) -> u32 {
        while let Place::View { of, .. } = self.buffers[b as usize].place {
            b = of;
        }
        b
    }

    fn region(&mut self, region: RegionId) -> Vec<Step> {
        let mut steps = vec![];
        for &n in &self.graph.region(region).nodes {
            self.node(n, &mut steps);
        }
        steps
    }

    fn args(&mut self, n: NodeId) -> Option<Vec<u32>> {
        self.graph
            .node(n)
            .args
            .iter()
            .map(|v| self.of.get(v).copied())
            .collect()
    }

    fn node(&mut self, n: NodeId, steps: &mut Vec<Step>) {
        let node = self.graph.node(n);
        // An argument without a buffer is a failure that was reported already.
        let Some(args) = self.args(n) else { return };
        match &node.op {
            Op::Constant(c) => {
                let g = self.outer.literal(&c.value);
                let b = self.buffer(Dim::from(c.value.bytes().len()), Place::Global(g));
                self.of.insert(node.results[0], b);
            }
            Op::Global(g) => match self.outer.global(&g.name) {
                Some(i) if self.graph.ty(node.results[0]).encoding.is_none() => {
                    let b = self.buffer(self.graph.ty(node.results[0]).bytes(), Place::Global(i));
                    self.of.insert(node.results[0], b);
                }
                Some(_) => self.fail(Some(n), "encoded weights have no kernels yet"),
                None => self.fail(Some(n), "the global has no constant shape"),
            },
            Op::Dims(d) => {
                let to = self.result(node.results[0]);
                steps.push(Step::WriteDims {
                    to,
                    values: d.value.dims.clone(),
                });
            }
            Op::Reshape(_) => {
                let bytes = self.graph.ty(node.results[0]).bytes();
                let b = self.buffer(
                    bytes,
                    Place::View {
                        of: args[0],
                        offset: Dim::ZERO,
                    },
                );
                self.of.insert(node.results[0], b);
            }
            Op::NonZero(z) => {
                let ty = self.graph.ty(node.args[0]).clone();
                if ty.dtype.size().is_none() {
                    return self.fail(Some(n), "elements of less than a byte have no kernel");
                }
                let to = self.result(node.results[0]);
                steps.push(Step::NonZero {
                    from: args[0],
                    dtype: ty.dtype,
                    dims: ty.shape,
                    to,
                    symbol: z.symbol.to_string(),
                });
            }
            Op::BindDim(b) => steps.push(Step::BindDim {
                symbol: b.symbol.to_string(),
                from: args[0],
                max: b.max.clone(),
            }),
            Op::Fused(_) => self.fused(n, &args, steps),
            Op::If(op) => {
                if !op.sizes.is_empty() {
                    return self.fail(
                        Some(n),
                        "branches that yield different shapes have no plan yet",
                    );
                }
                let results: Vec<u32> = node.results.iter().map(|&v| self.result(v)).collect();
                let mut branches = vec![];
                for &r in &node.regions {
                    let mut inner = self.region(r);
                    for (&v, &to) in self.graph.region(r).results.iter().zip(&results) {
                        let Some(&from) = self.of.get(&v) else { return };
                        inner.push(Step::Copy {
                            from,
                            to,
                            bytes: self.graph.ty(v).bytes(),
                        });
                    }
                    branches.push(inner);
                }
                let otherwise = branches.pop().unwrap_or_default();
                let then = branches.pop().unwrap_or_default();
                steps.push(Step::If {
                    cond: args[0],
                    then,
                    otherwise,
                });
            }
            Op::Loop(op) => {
                if !op.sizes.is_empty() {
                    return self.fail(Some(n), "carried values that change shape have no plan yet");
                }
                self.run_loop(n, &args, op.carried, op.symbol.clone(), steps);
            }
            Op::Call(_) => self.fail(
                Some(n),
                "calls are inlined before lowering, and this one was not",
            ),
            Op::Pack(_) | Op::Decode(_) => {
                self.fail(Some(n), "there is no kernel for this operation yet");
            }
            kiln_ir::any_elementwise!()
            | kiln_ir::any_move!()
            | kiln_ir::any_view!()
            | kiln_ir::any_reduction!()
            | kiln_ir::any_anchor!()
            | kiln_ir::any_kernel!()
            | kiln_ir::any_composite!() => {
                self.fail(Some(n), "the operation stands outside a group");
            }
        }
    }

    fn fused(&mut self, n: NodeId, args: &[u32], steps: &mut Vec<Step>) {
        let node = self.graph.node(n);
        let region = node.regions[0];
        let kernel = match group::kernel(self.graph, region) {
            Ok(k) => k,
            Err(e) => return self.fail(Some(n), e.to_string()),
        };
        let params = &self.graph.region(region).params;
        let outside = |v: Value| params.iter().position(|&p| p == v);
        let v = node.results[0];
        let bytes = self.graph.ty(v).bytes();
        let out = match kernel.updates.and_then(outside) {
            Some(i) => {
                let from = args[i];
                let base = self.base(from);
                let own = matches!(self.buffers[base as usize].place, Place::Arena)
                    || (matches!(self.buffers[base as usize].place, Place::Global(g) if self.outer.program.globals[g as usize].state));
                // Its last reader may overwrite it.
                let last = self.last_use.get(&node.args[i]) == Some(&n)
                    && self.views_end_here(node.args[i], n);
                if own && last {
                    let b = self.buffer(
                        bytes,
                        Place::View {
                            of: from,
                            offset: Dim::ZERO,
                        },
                    );
                    self.of.insert(v, b);
                    b
                } else {
                    let to = self.result(v);
                    steps.push(Step::Copy { from, to, bytes });
                    to
                }
            }
            None => self.result(v),
        };
        let mut launch_args = vec![];
        for (input, offset) in &kernel.inputs {
            let Some(i) = outside(*input) else {
                return self.fail(Some(n), "a kernel reads a value it is not given");
            };
            launch_args.push((args[i], offset.clone()));
        }
        launch_args.push((out, Dim::ZERO));
        let (flops, moved) = match kernel.variants.last() {
            Some(v) => v.spec.cost(&v.params),
            None => (Dim::ZERO, Dim::ZERO),
        };
        let variants = kernel
            .variants
            .into_iter()
            .map(|v| Variant {
                guards: v
                    .guards
                    .into_iter()
                    .map(|(left, right)| plan::Guard {
                        left,
                        equal: false,
                        right,
                        because: "variant".into(),
                    })
                    .collect(),
                tiles: v.spec.tiles(&v.params),
                scratch: v.spec.scratch_bytes(&v.params),
                kernel: self.outer.kernel(v.spec),
                params: v.params,
            })
            .collect();
        steps.push(Step::Launch(Launch {
            variants,
            args: launch_args,
            label: describe(self.graph, n),
            flops,
            bytes: moved,
        }));
    }

    /// Whether no view of a value is read after a node.
    fn views_end_here(&self, v: Value, n: NodeId) -> bool {
        let Some(&b) = self.of.get(&v) else {
            return false;
        };
        let base = self.base(b);
        let order = self.graph.nodes_in_order();
        let place: BTreeMap<NodeId, usize> =
            order.iter().enumerate().map(|(i, &m)| (m, i)).collect();
        self.of
            .iter()
            .filter(|&(_, &o)| self.base(o) == base)
            .all(|(w, _)| {
                let results = (0..self.graph.region_count())
                    .any(|r| self.graph.region(RegionId(r as u32)).results.contains(w));
                *w == v || (!results && self.last_use.get(w).is_none_or(|m| place[m] <= place[&n]))
            })
    }

    fn run_loop(
        &mut self,
        n: NodeId,
        args: &[u32],
        carried: usize,
        symbol: Option<Arc<str>>,
        steps: &mut Vec<Step>,
    ) {
        let node = self.graph.node(n);
        let region = self.graph.region(node.regions[0]);
        let iteration = self.result(region.params[0]);
        let mut inner = vec![];
        for (i, &p) in region.params[1..].iter().enumerate() {
            let b = self.result(p);
            let bytes = self.graph.ty(p).bytes();
            steps.push(Step::Copy {
                from: args[2 + i],
                to: b,
                bytes,
            });
            inner.push(b);
        }
        let mut body = self.region(node.regions[0]);
        let Some(out): Option<Vec<u32>> = region
            .results
            .iter()
            .map(|v| self.of.get(v).copied())
            .collect()
        else {
            return;
        };
        // Values that are other carried values, or not computed in the body, are
        // staged, so that carrying one does not overwrite another.
        let mut moves = vec![];
        for i in 0..carried {
            let bytes = self.graph.ty(region.results[1 + i]).bytes();
            let base = self.base(out[1 + i]);
            if base == inner[i] {
                continue;
            }
            let from = if inner.contains(&base) {
                let staged = self.buffer(bytes.clone(), Place::Arena);
                body.push(Step::Copy {
                    from: out[1 + i],
                    to: staged,
                    bytes: bytes.clone(),
                });
                staged
            } else {
                out[1 + i]
            };
            moves.push((from, inner[i], bytes));
        }
        let mut scanned = vec![];
        for (k, &v) in node.results[carried..].iter().enumerate() {
            let to = self.result(v);
            scanned.push((
                out[1 + carried + k],
                to,
                self.graph.ty(region.results[1 + carried + k]).bytes(),
            ));
        }
        for (i, &v) in node.results[..carried].iter().enumerate() {
            let b = self.buffer(
                self.graph.ty(v).bytes(),
                Place::View {
                    of: inner[i],
                    offset: Dim::ZERO,
                },
            );
            self.of.insert(v, b);
        }
        steps.push(Step::Loop(Loop {
            trip: args[0],
            cond: args[1],
            iteration,
            body_cond: out[0],
            body,
            carried: moves,
            scanned,
            symbol: symbol.map(|s| s.to_string()),
        }));
    }

    /// Results that a kernel writes go straight to the caller's memory.
    fn place_outputs(&mut self, outputs: &[Port]) {
        let mut seen = BTreeSet::new();
        for p in outputs {
            let b = &mut self.buffers[p.buffer as usize];
            if matches!(b.place, Place::Arena) && seen.insert(p.buffer) {
                b.place = Place::Output;
            }
        }
    }

    fn liveness(&mut self, steps: &[Step], returned: &[u32]) {
        let mut live: Vec<Option<(u32, u32)>> = vec![None; self.buffers.len()];
        let mut at = 0;
        self.walk(steps, &mut at, &mut live);
        for &b in returned {
            self.touch(b, at + 1, &mut live);
        }
        for (b, l) in self.buffers.iter_mut().zip(live) {
            b.live = l.unwrap_or((0, 0));
        }
    }

    fn touch(&self, b: u32, at: u32, live: &mut [Option<(u32, u32)>]) {
        let base = self.base(b) as usize;
        live[base] = Some(live[base].map_or((at, at), |(first, _)| (first, at)));
    }

    fn walk(&self, steps: &[Step], at: &mut u32, live: &mut Vec<Option<(u32, u32)>>) {
        for step in steps {
            *at += 1;
            let touch = |bs: &[u32], at: u32, live: &mut Vec<Option<(u32, u32)>>| {
                bs.iter().for_each(|&b| self.touch(b, at, live));
            };
            match step {
                Step::Launch(l) => {
                    let bs: Vec<u32> = l.args.iter().map(|a| a.0).collect();
                    touch(&bs, *at, live);
                }
                Step::WriteDims { to, .. } => touch(&[*to], *at, live),
                Step::Copy { from, to, .. } => touch(&[*from, *to], *at, live),
                Step::BindDim { from, .. } => touch(&[*from], *at, live),
                Step::NonZero { from, to, .. } => touch(&[*from, *to], *at, live),
                Step::If {
                    cond,
                    then,
                    otherwise,
                } => {
                    touch(&[*cond], *at, live);
                    self.walk(then, at, live);
                    self.walk(otherwise, at, live);
                }
                Step::Loop(l) => {
                    let start = *at;
                    let ports: Vec<u32> = [l.trip, l.cond, l.iteration, l.body_cond]
                        .into_iter()
                        .chain(l.carried.iter().chain(&l.scanned).flat_map(|c| [c.0, c.1]))
                        .collect();
                    touch(&ports, start, live);
                    self.walk(&l.body, at, live);
                    *at += 1;
                    touch(&ports, *at, live);
                    // What lived before the loop and is used in it lives through it.
                    for slot in live.iter_mut().flatten() {
                        if slot.0 < start && slot.1 >= start {
                            slot.1 = *at;
                        }
                    }
                }
            }
        }
    }
}

/// A short name for what a node computes.
fn describe(graph: &Graph, n: NodeId) -> String {
    let node = graph.node(n);
    let mut names: Vec<&str> = vec![];
    for &r in &node.regions {
        for &m in &graph.region(r).nodes {
            let op = &graph.node(m).op;
            if !matches!(op, Op::Constant(_) | Op::Dims(_) | Op::Broadcast(_)) {
                names.push(op.def().mnemonic());
            }
        }
    }
    let what = match names.len() {
        0 => node.op.def().mnemonic().to_string(),
        1..=5 => names.join("+"),
        k => format!("{}+…+{} ({k})", names[..3].join("+"), names[k - 1]),
    };
    match node.origins.iter().next() {
        Some(o) => format!("{what} [{}]", o.node),
        None => what,
    }
}

/// The contents of a plan's global as bytes; for constants that repeat one
/// element, that element.
pub fn contents(module: &Module, c: &Contents) -> Result<Bytes, String> {
    match c {
        Contents::Literal(t) => Ok(Bytes::Whole(t.clone())),
        Contents::Global(name) => {
            let global = module
                .globals
                .get(name)
                .ok_or_else(|| format!("there is no global @{name}"))?;
            let source = match &global.kind {
                GlobalKind::Const(s) | GlobalKind::State { init: s, .. } => s,
            };
            if let ConstSource::Splat(v) = source {
                let t = Tensor::scalar_f64(global.ty.dtype, *v);
                return Ok(Bytes::Repeated(t.bytes().to_vec()));
            }
            let lookup = |n: &str| constant(module, n);
            kiln_ir::interp::materialize(global, source, &lookup)
                .map(Bytes::Whole)
                .map_err(|e| e.to_string())
        }
    }
}

/// The bytes of a global.
pub enum Bytes {
    /// All of them.
    Whole(Tensor),
    /// One element, repeated.
    Repeated(Vec<u8>),
}

fn constant(module: &Module, name: &str) -> Result<Tensor, kiln_ir::EvalError> {
    let global = module
        .globals
        .get(name)
        .ok_or_else(|| kiln_ir::EvalError(format!("there is no global @{name}")))?;
    match &global.kind {
        GlobalKind::Const(s) => kiln_ir::interp::materialize(global, s, &|n| constant(module, n)),
        GlobalKind::State { .. } => Err(kiln_ir::EvalError(format!("@{name} is state"))),
    }
}

/// Lets go of the pages of mapped weights that a global was made from.
pub fn release(module: &Module, c: &Contents) {
    let Contents::Global(name) = c else { return };
    let mut names = vec![name.clone()];
    while let Some(name) = names.pop() {
        match module.globals.get(&name).map(|g| &g.kind) {
            Some(GlobalKind::Const(s) | GlobalKind::State { init: s, .. }) => match s {
                ConstSource::Tensor(t) => kiln_runtime::memory::page_out(t.bytes()),
                ConstSource::Expr { args, .. } => names.extend(args.iter().cloned()),
                ConstSource::Splat(_) => {}
            },
            None => {}
        }
    }
}
