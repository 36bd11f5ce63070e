//! Whole programs: functions over shared weights and state.

use super::*;
use crate::graph::{PortKind, Value};
use crate::interp::Interpreter;
use crate::module::{ConstSource, Global, GlobalKind, Module};
use crate::ops::attention::{Attention, KvCacheAppend, MaskKind, Rope};
use crate::ops::composite::{Embedding, RmsNorm};
use crate::ops::index::BindDim;
use crate::ops::source::Iota;
use crate::parse::{NoFiles, parse_module};
use crate::print::{PrintOptions, print_module};
use crate::verify::verify_module;
use crate::{BinaryFn, UnaryFn};

const VOCAB: usize = 8;
const MODEL: usize = 4;
const HEADS: usize = 2;
const GROUPS: usize = 1;
const HEAD: usize = 4;
const CAPACITY: usize = 12;

/// One layer of attention between an embedding and logits: `forward` over whole
/// sequences; `prefill` and `decode` over the same weights and a cache.
fn decoder() -> Module {
    let mut module = Module::default();
    let weights: [(&str, &[usize]); 6] = [
        ("table", &[VOCAB, MODEL]),
        ("norm", &[MODEL]),
        ("wq", &[MODEL, HEADS * HEAD]),
        ("wk", &[MODEL, GROUPS * HEAD]),
        ("wv", &[MODEL, GROUPS * HEAD]),
        ("wo", &[HEADS * HEAD, VOCAB]),
    ];
    for (seed, (name, shape)) in weights.into_iter().enumerate() {
        let t = ramp(shape, seed + 1);
        let global = Global {
            ty: t.ty(),
            kind: GlobalKind::Const(ConstSource::Tensor(t)),
        };
        module.globals.insert(name.into(), global);
    }
    for name in ["keys", "values"] {
        let kind = GlobalKind::State {
            init: ConstSource::Splat(0.0),
            checkpoint: None,
        };
        module.globals.insert(
            name.into(),
            Global {
                ty: cache_type(),
                kind,
            },
        );
    }
    for (name, cached) in [("forward", false), ("prefill", true), ("decode", true)] {
        let graph = decoder_function(&module, name, cached).unwrap();
        module.functions.push(graph);
    }
    module
}

fn cache_type() -> TensorType {
    let dims: Vec<Dim> = [1, GROUPS, CAPACITY, HEAD].map(Dim::from).to_vec();
    TensorType::new(DType::F32, dims)
}

fn decoder_function(module: &Module, name: &str, cached: bool) -> Result<Graph, TypeError> {
    let mut graph = Graph::new(name);
    let seq = if name == "decode" {
        Dim::ONE
    } else {
        Dim::sym("seq")
    };
    let ids_type = TensorType::new(DType::I64, [Dim::ONE, seq.clone()]);
    let ids = graph.add_param("ids", PortKind::Caller, ids_type);
    let mut cache = vec![];
    if cached {
        let past = graph.add_param("past", PortKind::Caller, TensorType::scalar(DType::I64));
        cache.push(past);
        for name in ["keys", "values"] {
            cache.push(graph.add_param(name, PortKind::State(name.into()), cache_type()));
        }
    }
    let b = &mut Builder::at_end(&mut graph, &module.globals, Graph::BODY);
    let past = match cache.first() {
        Some(&at) => {
            b.push(
                BindDim {
                    symbol: "past".into(),
                    max: Some(CAPACITY.into()),
                },
                &[at],
            )?;
            Dim::sym("past")
        }
        None => Dim::ZERO,
    };
    let table = b.global("table")?;
    let x = b.one(Embedding, &[table, ids])?;
    let scale = b.global("norm")?;
    let x = b.one(RmsNorm { axis: 2, eps: 1e-6 }, &[x, scale])?;
    let q = heads(b, x, "wq", HEADS, &seq)?;
    let k = heads(b, x, "wk", GROUPS, &seq)?;
    let mut v = heads(b, x, "wv", GROUPS, &seq)?;
    let (cos, sin) = angles(b, &seq, &past)?;
    let rope = Rope {
        interleaved: false,
        rotary_dims: None,
    };
    let q = b.one(rope.clone(), &[q, cos, sin])?;
    let mut k = b.one(rope, &[k, cos, sin])?;
    if let [at, keys, values] = cache[..] {
        k = b.one(KvCacheAppend, &[keys, k, at])?;
        v = b.one(KvCacheAppend, &[values, v, at])?;
    }
    let attention = Attention {
        scale: 0.5,
        mask: MaskKind::Causal { offset: past },
        bias: false,
        keep: false,
        slopes: false,
        lengths: false,
    };
    let y = b.one(attention, &[q, k, v])?;
    let y = b.transpose(y, &[0, 2, 1, 3])?;
    let y = b.reshape(y, &[Dim::ONE, seq, (HEADS * HEAD).into()])?;
    let wo = b.global("wo")?;
    let logits = b.matmul(y, wo)?;
    graph.add_result("logits", PortKind::Caller, logits);
    if cached {
        graph.add_result("keys", PortKind::State("keys".into()), k);
        graph.add_result("values", PortKind::State("values".into()), v);
    }
    Ok(graph)
}

fn heads(b: &mut Builder, x: Value, weight: &str, n: usize, seq: &Dim) -> Result<Value, TypeError> {
    let w = b.global(weight)?;
    let y = b.matmul(x, w)?;
    let y = b.reshape(y, &[Dim::ONE, seq.clone(), n.into(), HEAD.into()])?;
    b.transpose(y, &[0, 2, 1, 3])
}

/// Cosines and sines of `position / 10^(2i/HEAD)`.
fn angles(b: &mut Builder, seq: &Dim, past: &Dim) -> Result<(Value, Value), TypeError> {
    let position = b.one(
        Iota {
            shape: vec![seq.clone(), Dim::ONE],
            axis: 0,
            dtype: DType::I64,
        },
        &[],
    )?;
    let past = b.dims(SymValue::scalar(past.clone()))?;
    let position = b.add(position, past)?;
    let position = b.cast(position, DType::F32)?;
    let rates: Vec<f64> = (0..HEAD / 2)
        .map(|i| 10f64.powf(-2.0 * i as f64 / HEAD as f64))
        .collect();
    let rates = b.constant(
        Tensor::from_f64(DType::F32, [HEAD / 2], &rates).map_err(|e| TypeError(e.to_string()))?,
    )?;
    let angle = b.binary(BinaryFn::Mul, position, rates)?;
    Ok((b.unary(UnaryFn::Cos, angle)?, b.unary(UnaryFn::Sin, angle)?))
}

/// The program as `tests/kir/decoder.kir` has it; `KILN_BLESS=1` writes it anew.
fn from_text(built: &Module) -> Module {
    let text = print_module(built, &PrintOptions::default());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/kir/decoder.kir");
    if std::env::var_os("KILN_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
    let module = parse_module(&text, &NoFiles).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print_module(&module, &PrintOptions::default()), text);
    module
}

#[test]
fn decoding_with_a_cache_gives_what_the_whole_sequence_gives() {
    let module = from_text(&decoder());
    assert_eq!(
        verify_module(&module)
            .iter()
            .map(|e| e.to_string())
            .collect::<Vec<_>>(),
        [""; 0]
    );
    let ids = [3, 1, 4, 1, 5, 7, 2, 6];
    let mut it = Interpreter::new(&module).unwrap();
    let whole = it.run("forward", &[i64s(&[1, 8], &ids)]).unwrap()[0].to_f64();
    let past = |n| Tensor::scalar_i64(DType::I64, n);
    // The prompt in two parts, then one token at a time.
    let mut parts = it
        .run("prefill", &[i64s(&[1, 3], &ids[..3]), past(0)])
        .unwrap()[0]
        .to_f64();
    parts.extend(
        it.run("prefill", &[i64s(&[1, 2], &ids[3..5]), past(3)])
            .unwrap()[0]
            .to_f64(),
    );
    for (i, &id) in ids.iter().enumerate().skip(5) {
        parts.extend(
            it.run("decode", &[i64s(&[1, 1], &[id]), past(i as i64)])
                .unwrap()[0]
                .to_f64(),
        );
    }
    let whole = Tensor::from_f64(DType::F32, [8, VOCAB], &whole).unwrap();
    close(&whole, &parts, 1e-6);
    // Order matters, so the test is not blind to positions.
    let swapped = it
        .run("forward", &[i64s(&[1, 8], &[1, 3, 4, 1, 5, 7, 2, 6])])
        .unwrap()[0]
        .to_f64();
    let last = |v: &[f64]| v[7 * VOCAB..].to_vec();
    assert_ne!(last(&whole.to_f64()), last(&swapped));
    // The cache is full after twelve positions.
    assert!(
        it.run("decode", &[i64s(&[1, 1], &[1]), past(CAPACITY as i64)])
            .is_err()
    );
}
