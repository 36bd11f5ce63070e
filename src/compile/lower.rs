//! From a module whose functions are groups to a plan: buffers, steps, kernels.

use super::contents::Contents;
use super::{group, guards};
use kiln_ir::{
    DType, Def, Dim, GlobalKind, Graph, Module, NodeId, Op, PortKind, RegionId, Relation, Tensor,
    Value,
};
use kiln_kernels::KernelSpec;
use kiln_kernels::cuda::SortSpec;
use kiln_runtime::plan::{
    self, Buffer, Entry, Global, GlobalData, Launch, PLAN_VERSION, Place, Port, Program, Step,
    Variant,
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
    /// Each device kernel's symbol and problem, in the plan's order.
    pub selections: Vec<(String, SortSpec)>,
    /// Where each of the plan's globals comes from.
    pub contents: Vec<Contents>,
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
        selections: vec![],
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
    l.program.device_kernels = l.selections.iter().map(|k| k.0.clone()).collect();
    for e in &mut l.program.entries {
        number_selections(&mut e.steps, l.kernels.len() as u32);
    }
    Ok(Lowered {
        program: l.program,
        kernels: l.kernels,
        selections: l.selections,
        contents: l.contents,
    })
}

/// Device kernels are numbered behind the others, whose number is known now.
fn number_selections(steps: &mut [Step], behind: u32) {
    for step in steps {
        match step {
            Step::TopK { launch, .. } => {
                launch.variants.iter_mut().for_each(|v| v.kernel += behind);
            }
            Step::If {
                then, otherwise, ..
            } => {
                number_selections(then, behind);
                number_selections(otherwise, behind);
            }
            Step::Loop(l) => number_selections(&mut l.body, behind),
            Step::Launch(_)
            | Step::WriteDims { .. }
            | Step::Copy { .. }
            | Step::BindDim { .. }
            | Step::SetDims { .. }
            | Step::Check { .. }
            | Step::Repack { .. }
            | Step::NonZero { .. }
            | Step::Strings { .. }
            | Step::SplitStrings { .. } => {}
        }
    }
}

pub(super) struct Lowerer<'m> {
    module: &'m Module,
    program: Program,
    kernels: Vec<(String, KernelSpec)>,
    by_spec: HashMap<KernelSpec, u32>,
    selections: Vec<(String, SortSpec)>,
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
            KernelSpec::Conv(_) => "conv",
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

    /// The number of a selection among those of the plan.
    fn selection(&mut self, spec: SortSpec) -> u32 {
        let found = self.selections.iter().position(|s| s.1 == spec);
        found.unwrap_or_else(|| {
            let first = if spec.largest { "largest" } else { "smallest" };
            let name = format!("kiln_{first}_{}", spec.dtype);
            self.selections.push((name, spec));
            self.selections.len() - 1
        }) as u32
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
            bytes: literal_bytes(t) as u64,
            data: GlobalData::Section(0),
            state: false,
            checkpoint: None,
        });
        self.contents.push(Contents::Literal(t.clone()));
        index
    }
}

pub(super) struct FunctionLowerer<'a, 'm> {
    outer: &'a mut Lowerer<'m>,
    pub(super) graph: &'a Graph,
    pub(super) buffers: Vec<Buffer>,
    /// Where each value is.
    pub(super) of: BTreeMap<Value, u32>,
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
        let mut steps = vec![];
        for (port, &v) in graph.params.iter().zip(&graph.body().params) {
            let place = match &port.kind {
                PortKind::Caller => Place::Input,
                PortKind::State(name) => match l.outer.global(name) {
                    Some(_) if graph.ty(v).dtype == DType::Str => {
                        l.fail(None, format!("the state @{name} is of strings"));
                        Place::Input
                    }
                    Some(g) => Place::Global(g),
                    None => {
                        l.fail(None, format!("the state @{name} has no constant shape"));
                        Place::Input
                    }
                },
            };
            let b = l.buffer(graph.ty(v).bytes(), place);
            l.given(v, b, &mut steps);
            if port.kind == PortKind::Caller {
                inputs.push(l.port(&port.name, v, b));
            }
        }
        steps.extend(l.region(Graph::BODY));
        // State results go home; those that are other state values by way of
        // copies, so that none is overwritten before it is read.
        let mut outputs = vec![];
        let mut homes = vec![];
        for (port, &v) in graph.results.iter().zip(&graph.body().results) {
            let Some(b) = l.packed(v, &mut steps) else {
                continue;
            };
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
        let conditions: Vec<plan::Guard> = graph
            .guards
            .iter()
            .map(|g| plan::Guard {
                left: g.left.clone(),
                equal: g.relation == Relation::Eq,
                right: g.right.clone(),
                because: g.because.clone(),
            })
            .collect();
        let mut known = BTreeSet::new();
        for d in (graph.body().params.iter()).flat_map(|&v| graph.shape(v)) {
            d.symbols(&mut known);
        }
        guards::place(&mut steps, &conditions, &mut known);
        l.place_outputs(&outputs);
        let returned: Vec<u32> = outputs.iter().map(|p| p.buffer).collect();
        l.liveness(&steps, &returned);
        Entry {
            name: graph.name.to_string(),
            inputs,
            outputs,
            guards: conditions,
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

    pub(super) fn fail(&mut self, n: Option<NodeId>, message: impl Into<String>) {
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

    pub(super) fn buffer(&mut self, bytes: Dim, place: Place) -> u32 {
        self.buffers.push(Buffer {
            bytes,
            place,
            live: (0, 0),
        });
        self.buffers.len() as u32 - 1
    }

    /// Bytes of a value in a kernel's memory: elements of less than a byte have
    /// one each.
    pub(super) fn memory(&self, v: Value) -> Dim {
        let ty = self.graph.ty(v);
        match small(ty.dtype) && ty.encoding.is_none() {
            true => ty.elements(),
            false => ty.bytes(),
        }
    }

    /// From the bytes of files to a kernel's memory, or back.
    fn repack(&mut self, v: Value, from: u32, to: u32, pack: bool) -> Step {
        Step::Repack {
            from,
            to,
            dtype: self.graph.ty(v).dtype,
            count: self.graph.ty(v).elements(),
            pack,
        }
    }

    /// A value that stands in memory as files have it; small elements unpacked.
    fn given(&mut self, v: Value, packed: u32, steps: &mut Vec<Step>) {
        if small(self.graph.ty(v).dtype) {
            let to = self.result(v);
            let step = self.repack(v, packed, to, false);
            steps.push(step);
        } else {
            self.of.insert(v, packed);
        }
    }

    /// Where a value stands as files have it.
    fn packed(&mut self, v: Value, steps: &mut Vec<Step>) -> Option<u32> {
        let b = self.of.get(&v).copied()?;
        if !small(self.graph.ty(v).dtype) {
            return Some(b);
        }
        let to = self.buffer(self.graph.ty(v).bytes(), Place::Arena);
        let step = self.repack(v, b, to, true);
        steps.push(step);
        Some(to)
    }

    pub(super) fn result(&mut self, v: Value) -> u32 {
        let b = self.buffer(self.memory(v), Place::Arena);
        self.of.insert(v, b);
        b
    }

    /// The buffer whose memory this one is.
    pub(super) fn base(&self, mut b: u32) -> u32 {
        while let Place::View { of, .. } = self.buffers[b as usize].place {
            b = of;
        }
        b
    }

    pub(super) fn region(&mut self, region: RegionId) -> Vec<Step> {
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
                let bytes = Dim::from(literal_bytes(&c.value));
                let b = self.buffer(bytes, Place::Global(g));
                self.given(node.results[0], b, steps);
            }
            Op::Global(g) => match self.outer.global(&g.name) {
                Some(i) if self.graph.ty(node.results[0]).encoding.is_none() => {
                    let b = self.buffer(self.graph.ty(node.results[0]).bytes(), Place::Global(i));
                    self.given(node.results[0], b, steps);
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
            // In memory such elements have a byte each.
            Op::BitCast(_) if small(self.graph.ty(node.args[0]).dtype) => {
                self.fail(Some(n), "elements of less than a byte have no kernel");
            }
            Op::Reshape(_) | Op::BitCast(_) => {
                let bytes = self.memory(node.results[0]);
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
            Op::TopK(t) => {
                let ty = self.graph.ty(node.args[0]).clone();
                if ty.dtype.size().is_none() {
                    return self.fail(Some(n), "elements of less than a byte have no kernel");
                }
                let to = [node.results[0], node.results[1]].map(|v| self.result(v));
                let kernel = self.outer.selection(SortSpec {
                    dtype: ty.dtype,
                    largest: t.largest,
                });
                let width = Dim::from(ty.dtype.size().unwrap_or(1));
                let (outer, inner) = ty.shape.split_at(t.axis);
                let outer = Dim::product(outer);
                let inner = Dim::product(&inner[1..]);
                let taken = outer.clone() * inner.clone() * t.k.clone();
                let all = [args[0], to[0], to[1]];
                let launch = Launch {
                    variants: vec![Variant {
                        guards: vec![],
                        kernel,
                        params: vec![outer, ty.shape[t.axis].clone(), inner, t.k.clone()],
                        tiles: Dim::ZERO,
                        scratch: Dim::ZERO,
                    }],
                    args: all.map(|b| (b, Dim::ZERO)).to_vec(),
                    writes: 2,
                    label: describe(self.graph, n),
                    flops: Dim::ZERO,
                    bytes: ty.elements() * width.clone() + taken * (width + 8.into()),
                };
                steps.push(Step::TopK {
                    launch,
                    dtype: ty.dtype,
                    dims: ty.shape,
                    axis: t.axis as u32,
                    k: t.k.clone(),
                    largest: t.largest,
                });
            }
            Op::StringMap(m) => {
                let to = self.result(node.results[0]);
                let ty = self.graph.ty(node.args[0]);
                steps.push(Step::Strings {
                    f: m.f.clone(),
                    args,
                    dtype: ty.dtype,
                    count: ty.elements(),
                    to,
                    label: describe(self.graph, n),
                });
            }
            Op::StringSplit(s) => {
                let (pieces, counts) = (self.result(node.results[0]), self.result(node.results[1]));
                steps.push(Step::SplitStrings {
                    from: args[0],
                    delimiter: s.delimiter.clone(),
                    most: s.most.map(|m| m as u64),
                    count: self.graph.ty(node.args[0]).elements(),
                    symbol: s.symbol.to_string(),
                    pieces,
                    counts,
                    label: describe(self.graph, n),
                });
            }
            Op::BindDim(b) => steps.push(Step::BindDim {
                symbol: b.symbol.to_string(),
                from: args[0],
                max: b.max.clone(),
            }),
            Op::Fused(_) => self.fused(n, &args, steps),
            Op::If(op) => self.branches(n, &args, &op.sizes, steps),
            Op::Loop(op) => self.run_loop(n, &args, op, steps),
            Op::Call(_) => self.fail(
                Some(n),
                "calls are inlined before lowering, and this one was not",
            ),
            Op::Pack(_) | Op::PackFilters(_) | Op::Decode(_) => {
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
        let bytes = self.memory(v);
        let out = match kernel.updates.and_then(outside) {
            Some(i) => {
                let from = args[i];
                let base = self.base(from);
                let own = matches!(self.buffers[base as usize].place, Place::Arena)
                    || (matches!(self.buffers[base as usize].place, Place::Global(g) if self.outer.program.globals[g as usize].state));
                // Its last reader may overwrite it.
                let last = self.last_use.get(&node.args[i]) == Some(&n)
                    && self.views_end_here(node.args[i], n);
                // The kernel itself may read it as well: the updates are the target's
                // own elements, which the first store would change.
                let read = (kernel.inputs.iter())
                    .filter_map(|(v, _)| outside(*v))
                    .any(|j| self.base(args[j]) == base);
                if own && last && !read {
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
            writes: 1,
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
                if !self.runs_once_for(*w, n) {
                    return false;
                }
                let results = (0..self.graph.region_count())
                    .any(|r| self.graph.region(RegionId(r as u32)).results.contains(w));
                *w == v || (!results && self.last_use.get(w).is_none_or(|m| place[m] <= place[&n]))
            })
    }

    /// Whether a node runs once for each time that a value is made: in a loop it runs
    /// again on what it made of an outer value.
    fn runs_once_for(&self, v: Value, n: NodeId) -> bool {
        let home = match self.graph.value(v).def {
            Def::Node(m, _) => self.graph.node(m).parent,
            Def::Param(r, _) => r,
        };
        let mut at = self.graph.node(n).parent;
        while at != home {
            let Some(owner) = self.graph.region(at).owner else {
                return true;
            };
            let owner = self.graph.node(owner);
            if matches!(owner.op, Op::Loop(_)) {
                return false;
            }
            at = owner.parent;
        }
        true
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
}

/// Elements that share a byte in files.
fn small(dtype: DType) -> bool {
    dtype.size().is_none()
}

/// Bytes of a literal in memory, where strings are handles.
fn literal_bytes(t: &Tensor) -> usize {
    match t.dtype() {
        DType::Str => 8 * t.len(),
        _ => t.bytes().len(),
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
