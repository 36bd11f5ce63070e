//! The constants of a graph, by name.

use super::attribute;
use crate::import::proto::{GraphProto, NodeProto};
use crate::import::{Diagnostic, Draft};
use crate::ir::{DType, Tensor};
use std::collections::HashMap;

/// Identities and transposes that are followed to a constant.
const MOST_STEPS: usize = 16;

/// Where values of a graph come from.
pub struct Constants {
    initializers: HashMap<String, usize>,
    producers: HashMap<String, usize>,
}

impl Constants {
    pub fn of(graph: &GraphProto) -> Constants {
        let initializers = graph.initializer.iter().enumerate();
        let nodes = graph.node.iter().enumerate();
        Constants {
            initializers: initializers.map(|(i, t)| (t.name.clone(), i)).collect(),
            producers: nodes
                .flat_map(|(i, n)| n.output.iter().map(move |o| (o.clone(), i)))
                .collect(),
        }
    }

    /// The node that makes a value.
    fn producer<'g>(&self, graph: &'g GraphProto, name: &str) -> Option<&'g NodeProto> {
        self.producers.get(name).map(|&i| &graph.node[i])
    }

    /// Whether a value was in 8 bits or so just before: the model is quantized there.
    pub fn is_quantized(&self, graph: &GraphProto, name: &str) -> bool {
        let mut name = name;
        for _ in 0..MOST_STEPS {
            match self.producer(graph, name) {
                Some(n) if n.op_type == "DequantizeLinear" => return true,
                Some(n) if moves(n) && !n.input.is_empty() => name = &n.input[0],
                _ => return false,
            }
        }
        false
    }

    /// The constant of this name: an initializer, a Constant node's tensor, or one of
    /// these behind Identity and Transpose; none where it is computed otherwise.
    pub fn read(&self, draft: &mut Draft, name: &str) -> Result<Option<Tensor>, Box<Diagnostic>> {
        let Draft { proto, weights } = draft;
        let graph = &proto.graph;
        let mut transposes: Vec<Option<Vec<usize>>> = vec![];
        let mut name = name;
        let mut found = None;
        for _ in 0..MOST_STEPS {
            if let Some(&i) = self.initializers.get(name) {
                found = Some(weights.read(&graph.initializer[i])?);
                break;
            }
            let Some(node) = self.producer(graph, name) else {
                return Ok(None);
            };
            if node.op_type == "Constant" && node.domain.is_empty() {
                if let Some(t) = attribute(node, "value").and_then(|a| a.t.as_ref()) {
                    found = Some(weights.read(t)?);
                }
                break;
            }
            if !moves(node) || node.input.is_empty() {
                return Ok(None);
            }
            if node.op_type == "Transpose" {
                let perm = attribute(node, "perm").map(|a| {
                    let axes = a
                        .ints
                        .iter()
                        .map(|&i| usize::try_from(i).unwrap_or(usize::MAX));
                    axes.collect()
                });
                transposes.push(perm);
            }
            name = &node.input[0];
        }
        // The one nearest to the constant comes first.
        let turn = |t: Tensor, perm: Option<Vec<usize>>| transposed(&t, perm);
        Ok(found.and_then(|t| transposes.into_iter().rev().try_fold(t, turn)))
    }
}

/// Whether a node gives its input, its axes perhaps in another order.
fn moves(node: &NodeProto) -> bool {
    node.domain.is_empty() && matches!(&node.op_type[..], "Identity" | "Transpose")
}

/// An f32 constant with its axes in another order (reversed if none is given); none
/// where that is no order of its axes, or it is of another type.
fn transposed(t: &Tensor, perm: Option<Vec<usize>>) -> Option<Tensor> {
    let shape = t.shape();
    let perm = perm.unwrap_or_else(|| (0..shape.len()).rev().collect());
    let mut sorted = perm.clone();
    sorted.sort();
    if t.dtype() != DType::F32 || sorted != (0..shape.len()).collect::<Vec<_>>() {
        return None;
    }
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    let to: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
    let by: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
    let values = super::floats(t);
    let mut out = Vec::with_capacity(values.len());
    let mut at = vec![0usize; to.len()];
    let mut from = 0;
    for _ in 0..values.len() {
        out.push(values[from]);
        for axis in (0..to.len()).rev() {
            at[axis] += 1;
            from += by[axis];
            if at[axis] < to[axis] {
                break;
            }
            from -= by[axis] * to[axis];
            at[axis] = 0;
        }
    }
    Tensor::from_f32(to, &out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_change_places() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let t = Tensor::from_f32([2, 3, 4], &values).unwrap();
        let turned = transposed(&t, Some(vec![2, 0, 1])).unwrap();
        assert_eq!(turned.shape(), [4, 2, 3]);
        for (i, j, k) in [(0, 0, 0), (1, 2, 3), (0, 1, 2)] {
            let want = values[i * 12 + j * 4 + k] as f64;
            assert_eq!(turned.get_f64(k * 6 + i * 3 + j), want);
        }
        assert_eq!(transposed(&t, None).unwrap().shape(), [4, 3, 2]);
        assert!(transposed(&t, Some(vec![0, 0, 1])).is_none());
    }
}
