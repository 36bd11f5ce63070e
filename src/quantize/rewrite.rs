//! The pairs of operators, written into the model.

use super::constants::Constants;
use super::plan::{Plan, Product};
use super::{Grid, Names, Observed, Options, calibrate, floats, smooth, weights};
use crate::import::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType,
};
use crate::import::{Diagnostic, Draft};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// What became of a computed value.
#[derive(Clone, Debug)]
pub struct ActivationReport {
    pub tensor: String,
    pub grid: Grid,
    /// The least and the greatest value on the calibration data (after smoothing).
    pub range: (f32, f32),
    /// The share of the values that the grid clips.
    pub clipped: f64,
    /// Signal to quantization noise of the values, in dB.
    pub sqnr_db: f64,
    /// Whether its channels are multiplied by factors first.
    pub smoothed: bool,
}

/// What became of a constant.
#[derive(Clone, Debug)]
pub struct WeightReport {
    pub tensor: String,
    /// The node that reads it.
    pub node: String,
    pub shape: Vec<usize>,
    /// How many scales it has, and the least and the greatest.
    pub scales: usize,
    pub scale_range: (f32, f32),
    /// Signal to quantization noise, in dB.
    pub sqnr_db: f64,
    /// Whether the node's bias is in i32.
    pub bias: bool,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    pub activations: Vec<ActivationReport>,
    pub weights: Vec<WeightReport>,
}

/// ONNX's numbers of the element types that are written.
const F32: i32 = 1;
const U8: i32 = 2;
const I8: i32 = 3;
const I32: i32 = 6;

/// Writes a plan into a model. Every value that the plan's products read must have been
/// observed ([`Plan::without`] drops the others).
pub fn apply(
    draft: &mut Draft,
    plan: &Plan,
    observed: &Observed,
    options: &Options,
) -> Result<Applied, Box<Diagnostic>> {
    let mut w = Writer {
        constants: Constants::of(&draft.proto.graph),
        names: Names::of(draft),
        draft,
        observed,
        options,
        before: HashMap::new(),
        grids: HashMap::new(),
        shared: HashMap::new(),
        applied: Applied::default(),
    };
    let activations = plan.activations(&w.draft.proto.graph);
    for p in &plan.products {
        w.product(p)?;
    }
    w.outputs(&plan.outputs, &plan.products);
    w.place();
    // In the order of the nodes.
    let place: BTreeMap<&String, usize> = activations.iter().zip(0..).collect();
    w.applied
        .activations
        .sort_by_key(|a| place.get(&a.tensor).copied());
    let applied = w.applied;
    remove_unused(draft.proto.graph.mut_or_insert_default());
    Ok(applied)
}

/// A value with a grid.
#[derive(Clone)]
struct OnGrid {
    grid: Grid,
    /// The value back in f32.
    name: String,
}

/// A constant by its name, the axis of its scales, and what smooths it.
type WeightKey = (String, Option<usize>, Option<String>);

struct Writer<'a> {
    draft: &'a mut Draft,
    constants: Constants,
    names: Names,
    observed: &'a Observed,
    options: &'a Options,
    /// New nodes, by the place of the node that they go before; one past the last for
    /// the end.
    before: HashMap<usize, Vec<NodeProto>>,
    /// Values that have a grid.
    grids: HashMap<String, OnGrid>,
    /// Constants that were written.
    shared: HashMap<WeightKey, (String, Vec<f32>)>,
    applied: Applied,
}

impl Writer<'_> {
    fn product(&mut self, p: &Product) -> Result<(), Box<Diagnostic>> {
        let node = self.draft.proto.graph.node[p.node].clone();
        let mut inputs = node.input.clone();
        let mut activation = None;
        for &slot in &p.activations {
            let on = self.on_grid(&node.input[slot], p.node);
            inputs[slot] = on.name.clone();
            activation = Some((on, node.input[slot].clone()));
        }
        if let Some((slot, axis)) = p.weight {
            let bias = match p.bias {
                Some(b) => self
                    .constants
                    .read(self.draft, &node.input[b])?
                    .map(|t| floats(&t)),
                None => None,
            };
            let bias = bias.zip(activation.as_ref());
            let floors = bias
                .as_ref()
                .map_or(vec![], |(b, (on, _))| weights::floors(b, on.grid.scale));
            let x = activation.as_ref().map(|(_, x)| x);
            let Some((name, scales)) = self.weight(p, &node, slot, axis, x, floors)? else {
                return Ok(());
            };
            inputs[slot] = name;
            if let (Some((b, (on, _))), Some(at)) = (bias, p.bias) {
                inputs[at] = self.bias(p.node, &node.input[at], &b, on.grid.scale, &scales);
                if let Some(report) = self.applied.weights.last_mut() {
                    report.bias = true;
                }
            }
        }
        self.draft.proto.graph.mut_or_insert_default().node[p.node].input = inputs;
        Ok(())
    }

    /// The value on its grid; where it has none yet, made before the node `user`.
    fn on_grid(&mut self, x: &str, user: usize) -> OnGrid {
        if let Some(on) = self.grids.get(x) {
            return on.clone();
        }
        let unseen = super::Histogram::default();
        let h = self.observed.histograms.get(x).unwrap_or(&unseen);
        let grid = calibrate::grid(self.options.method, h);
        let factors = self.observed.factors.get(x);
        self.applied.activations.push(ActivationReport {
            tensor: x.to_string(),
            grid,
            range: h.range.unwrap_or_default(),
            clipped: grid.clipped(h),
            sqnr_db: grid.sqnr_db(h),
            smoothed: factors.is_some(),
        });
        let mut from = x.to_string();
        if let Some(factors) = factors {
            let by = self.constant(
                format!("{x}_factors"),
                F32,
                &[factors.len()],
                bytes(factors),
            );
            let out = self.names.fresh(format!("{x}_smoothed"));
            self.put(user, "Mul", &[&from, &by], &out, None);
            from = out;
        }
        let scale = self.constant(format!("{x}_scale"), F32, &[], bytes(&[grid.scale]));
        let zero = self.constant(format!("{x}_zero_point"), U8, &[], vec![grid.zero]);
        let quantized = self.names.fresh(format!("{x}_quantized"));
        let name = self.names.fresh(format!("{x}_dequantized"));
        self.put(
            user,
            "QuantizeLinear",
            &[&from, &scale, &zero],
            &quantized,
            None,
        );
        self.put(
            user,
            "DequantizeLinear",
            &[&quantized, &scale, &zero],
            &name,
            None,
        );
        let on = OnGrid { grid, name };
        self.grids.insert(x.to_string(), on.clone());
        on
    }

    /// The name of a weight that was quantized, back in f32, and its scales. Where the
    /// activation `x` is smoothed, the weight takes its factors up.
    fn weight(
        &mut self,
        p: &Product,
        node: &NodeProto,
        slot: usize,
        axis: Option<usize>,
        x: Option<&String>,
        floors: Vec<f32>,
    ) -> Result<Option<(String, Vec<f32>)>, Box<Diagnostic>> {
        let name = &node.input[slot];
        let Some(t) = self.constants.read(self.draft, name)? else {
            return Ok(None);
        };
        let mut values = floats(&t);
        let factors = x.and_then(|x| Some((x, self.observed.factors.get(x)?)));
        if let Some((_, factors)) = factors {
            smooth::take_up(node, &mut values, t.shape(), factors);
        }
        let most = if self.options.reduce_range { 63 } else { 127 };
        // One scale for all channels has to fit the largest bias.
        let floors = match axis {
            Some(_) => floors,
            None => floors.into_iter().reduce(f32::max).into_iter().collect(),
        };
        let q = weights::quantize(&values, t.shape(), axis, most, &floors);
        let Some(q) = q else {
            return Err(not_finite(name, p));
        };
        drop(values);
        let least = q.scales.iter().fold(f32::INFINITY, |a, &b| a.min(b));
        let largest = q.scales.iter().fold(0f32, |a, &b| a.max(b));
        self.applied.weights.push(WeightReport {
            tensor: name.clone(),
            node: p.name.clone(),
            shape: t.shape().to_vec(),
            scales: q.scales.len(),
            scale_range: (least.min(largest), largest),
            sqnr_db: q.sqnr_db,
            bias: false,
        });
        let key = (name.clone(), axis, factors.map(|f| f.0.clone()));
        if let Some((made, scales)) = self.shared.get(&key)
            && *scales == q.scales
        {
            return Ok(Some((made.clone(), scales.clone())));
        }
        let scales_shape: &[usize] = if axis.is_some() {
            &[q.scales.len()]
        } else {
            &[]
        };
        let raw = q.values.iter().map(|v| *v as u8).collect();
        let ints = self.constant(format!("{name}_quantized"), I8, t.shape(), raw);
        let scale = self.constant(format!("{name}_scale"), F32, scales_shape, bytes(&q.scales));
        let zeros = vec![0; q.scales.len()];
        let zero = self.constant(format!("{name}_zero_point"), I8, scales_shape, zeros);
        let out = self.names.fresh(format!("{name}_dequantized"));
        // At the front: whichever node reads it, it is there.
        self.put(0, "DequantizeLinear", &[&ints, &scale, &zero], &out, axis);
        self.shared.insert(key, (out.clone(), q.scales.clone()));
        Ok(Some((out, q.scales)))
    }

    /// The name of a bias that was quantized, back in f32.
    fn bias(
        &mut self,
        user: usize,
        name: &str,
        b: &[f32],
        activation: f32,
        scales: &[f32],
    ) -> String {
        let (ints, steps) = weights::bias(b, activation, scales);
        let shape: &[usize] = if steps.len() == 1 && b.len() != 1 {
            &[]
        } else {
            &[steps.len()]
        };
        let raw = ints.iter().flat_map(|v| v.to_le_bytes()).collect();
        let ints = self.constant(format!("{name}_quantized"), I32, &[b.len()], raw);
        let scale = self.constant(format!("{name}_scale"), F32, shape, bytes(&steps));
        let zeros = vec![0; 4 * steps.len()];
        let zero = self.constant(format!("{name}_zero_point"), I32, shape, zeros);
        let out = self.names.fresh(format!("{name}_dequantized"));
        let axis = (!shape.is_empty()).then_some(0);
        self.put(
            user,
            "DequantizeLinear",
            &[&ints, &scale, &zero],
            &out,
            axis,
        );
        out
    }

    /// Puts grids on results, and makes what reads them read those.
    fn outputs(&mut self, names: &[String], products: &[Product]) {
        let own: HashSet<usize> = products.iter().map(|p| p.node).collect();
        for x in names {
            let nodes = &self.draft.proto.graph.node;
            let reads = |n: &NodeProto| n.input.contains(x);
            let Some(first) = nodes.iter().position(reads) else {
                continue;
            };
            let on = self.on_grid(x, first);
            let graph = self.draft.proto.graph.mut_or_insert_default();
            let nodes = graph.node.iter_mut().enumerate();
            for (i, node) in nodes.filter(|(_, n)| n.input.contains(x)) {
                debug_assert!(!own.contains(&i) || node.op_type == "Gather");
                let places = node.input.iter_mut().filter(|name| *name == x);
                places.for_each(|name| name.clone_from(&on.name));
            }
        }
    }

    fn constant(&mut self, stem: String, data_type: i32, shape: &[usize], raw: Vec<u8>) -> String {
        let name = self.names.fresh(stem);
        self.draft
            .proto
            .graph
            .mut_or_insert_default()
            .initializer
            .push(TensorProto {
                name: name.clone(),
                data_type,
                dims: shape.iter().map(|&n| n as i64).collect(),
                raw_data: raw,
                ..Default::default()
            });
        name
    }

    fn put(&mut self, before: usize, op: &str, inputs: &[&str], out: &str, axis: Option<usize>) {
        let attribute = axis.map(|axis| AttributeProto {
            name: "axis".into(),
            type_: AttributeType::INT.into(),
            i: axis as i64,
            ..Default::default()
        });
        let node = NodeProto {
            name: self.names.fresh(format!("{out}_{op}")),
            op_type: op.into(),
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output: vec![out.into()],
            attribute: attribute.into_iter().collect(),
            ..Default::default()
        };
        self.before.entry(before).or_default().push(node);
    }

    /// Puts the new nodes among the old ones, which are in an order of use.
    fn place(&mut self) {
        let graph = self.draft.proto.graph.mut_or_insert_default();
        let old = std::mem::take(&mut graph.node);
        for (i, node) in old.into_iter().enumerate() {
            graph
                .node
                .extend(self.before.remove(&i).unwrap_or_default());
            graph.node.push(node);
        }
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn not_finite(weight: &str, p: &Product) -> Box<Diagnostic> {
    let mut d = super::problem(
        "K0743",
        format!("the constant `{weight}` holds NaN or infinity"),
        format!(
            "repair the model, or leave the node as it is: --exclude {}",
            p.name
        ),
    );
    d.place.node.clone_from(&p.name);
    d
}

/// Takes away the constants that nothing reads any more, and the nodes between those and
/// what read them (Constant, Identity, Transpose).
fn remove_unused(graph: &mut GraphProto) {
    loop {
        let mut read = BTreeSet::new();
        collect_reads(graph, &mut read);
        let nodes = graph.node.len();
        graph.node.retain(|n| {
            let moves = matches!(&n.op_type[..], "Constant" | "Identity" | "Transpose");
            !moves || n.output.iter().any(|o| read.contains(o))
        });
        if graph.node.len() == nodes {
            // In models of IR version 3 constants are inputs as well.
            let gone = |name: &String| !read.contains(name);
            let constants: HashSet<String> = (graph.initializer.iter())
                .map(|t| t.name.clone())
                .filter(gone)
                .collect();
            graph.initializer.retain(|t| !constants.contains(&t.name));
            graph.input.retain(|i| !constants.contains(&i.name));
            return;
        }
    }
}

/// Every name that a graph, or one inside it, reads.
pub(super) fn collect_reads(graph: &GraphProto, into: &mut BTreeSet<String>) {
    into.extend(graph.output.iter().map(|o| o.name.clone()));
    for n in &graph.node {
        into.extend(n.input.iter().cloned());
        let inner = n
            .attribute
            .iter()
            .flat_map(|a| a.g.as_ref().into_iter().chain(&a.graphs));
        inner.for_each(|g| collect_reads(g, into));
    }
}
