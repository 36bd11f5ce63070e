//! The text form, `.kir`: printing. [`crate::parse`] reads it back.
//!
//! ```text
//! kir 1
//! meta "producer" = "pytorch"
//! const @w : f32[4, 4] = file("w.bin", 0, 64)
//! state @n : i64[] = splat 0.0 checkpoint "step"
//! func @f(%x: f32[batch, 4], %n: i64[] = state @n) -> (y: f32[batch, 4], n: i64[] = state @n) {
//!   guard <batch> <= <64> "the cache holds the batch"
//!   %2 = global {name = "w"} : f32[4, 4]
//!   %3 = matmul %x, %2 {trans_a = false, trans_b = false} : f32[batch, 4] loc("m.onnx":"/fc")
//!   return %3, %n
//! }
//! ```
//!
//! Values are numbered in the order in which they are defined, a node's regions
//! before its results; a value whose name is a plain word is shown by its name.
//! Dims stand as [`crate::Dim`] displays them, in `<…>` outside of types. The
//! printer needs no valid graph: what is broken is printed as it is.

use crate::graph::{Graph, NodeId, Port, PortKind, RegionId, Relation, Value};
use crate::module::{ConstSource, GlobalKind, Module};
use crate::op::{Attr, Attrs};
use crate::tensor::computes_in_integers;
use crate::{DType, ShardSpec, Tensor, TensorType};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Version of the text form. A reader takes this version alone: the form is for
/// people and tests, and is written anew from the model.
pub const KIR_VERSION: u32 = 1;

/// What to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintOptions {
    /// Where each node stems from.
    pub origins: bool,
    /// Values by their ids in the arena, as messages name them, instead of
    /// numbered in order.
    pub ids: bool,
}

/// Takes the bytes of big constants; answers the file and the offset there.
pub type Blobs<'a> = dyn FnMut(&[u8]) -> (String, u64) + 'a;

/// Literals beyond this many elements go to the blobs, or are left out where there
/// are none: what fits a text that people read.
const INLINE_LIMIT: (usize, usize) = (64, 4096);

/// The text of a module. Big constants are replaced by a digest, so the text
/// does not parse back if there are any: [`print_with_blobs`] keeps them.
pub fn print_module(module: &Module, options: &PrintOptions) -> String {
    Printer::new(options, None).module(module)
}

/// The text of a module, with big constants given to `blobs`.
pub fn print_with_blobs(module: &Module, options: &PrintOptions, blobs: &mut Blobs) -> String {
    Printer::new(options, Some(blobs)).module(module)
}

/// The text of one function, big constants as digests.
pub fn print_graph(graph: &Graph, options: &PrintOptions) -> String {
    Printer::new(options, None).graph(graph)
}

/// A tensor literal.
pub(crate) fn literal_text(t: &Tensor) -> String {
    Printer::new(&PrintOptions::default(), None).attr(&Attr::Tensor(t.clone()))
}

/// Attributes in braces; nothing for none.
pub fn attrs_text(attrs: &Attrs) -> String {
    Printer::new(&PrintOptions::default(), None).attrs(attrs)
}

struct Printer<'p, 'b> {
    options: &'p PrintOptions,
    blobs: Option<&'p mut Blobs<'b>>,
}

impl<'p, 'b> Printer<'p, 'b> {
    fn new(options: &'p PrintOptions, blobs: Option<&'p mut Blobs<'b>>) -> Printer<'p, 'b> {
        Printer { options, blobs }
    }

    fn module(&mut self, module: &Module) -> String {
        let mut out = format!("kir {KIR_VERSION}\n");
        for (key, value) in &module.meta {
            let _ = writeln!(out, "meta {} = {}", quote(key), quote(value));
        }
        for (name, global) in &module.globals {
            let (kind, source, tail) = match &global.kind {
                GlobalKind::Const(s) => ("const", s, String::new()),
                GlobalKind::State { init, checkpoint } => {
                    let tail = checkpoint
                        .as_ref()
                        .map(|c| format!(" checkpoint {}", quote(c)));
                    ("state", init, tail.unwrap_or_default())
                }
            };
            let (name, ty) = (symbol(name), &global.ty);
            let source = self.source(source, ty);
            let _ = writeln!(out, "{kind} @{name} : {ty} = {source}{tail}");
        }
        for f in &module.functions {
            out.push_str(&self.graph(f));
        }
        out
    }

    fn source(&mut self, source: &ConstSource, ty: &TensorType) -> String {
        match source {
            ConstSource::Splat(v) => format!("splat {}", float(*v)),
            ConstSource::Tensor(t) => match self.elements(t) {
                file if file.starts_with("file(") && t.ty() == *ty => file,
                elements => format!("{} {elements}", t.ty()),
            },
            ConstSource::Expr { op, args } => {
                let args: Vec<String> = args.iter().map(|a| format!("@{}", symbol(a))).collect();
                let attrs = self.attrs(&op.def().attrs());
                format!("expr {} {}{attrs}", op.def().mnemonic(), args.join(", "))
            }
        }
    }

    fn graph(&mut self, graph: &Graph) -> String {
        let tokens = Tokens::of(graph, self.options.ids);
        let body = graph.body();
        let params = graph.params.iter().zip(&body.params).map(|(port, &v)| {
            let (token, name) = (tokens.get(v), &*port.name);
            let shown = if token[1..] == *name {
                String::new()
            } else {
                format!(" {}", quote(name))
            };
            format!("{token}{shown}: {}{}", typed(graph, v), tie(port))
        });
        let params: Vec<String> = params.collect();
        let results = graph.results.iter().zip(&body.results).map(|(port, &v)| {
            let name = if is_word(&port.name) {
                port.name.to_string()
            } else {
                quote(&port.name)
            };
            format!("{name}: {}{}", graph.ty(v), tie(port))
        });
        let results: Vec<String> = results.collect();
        let mut out = format!(
            "func @{}({}) -> ({}) {{\n",
            symbol(&graph.name),
            params.join(", "),
            results.join(", ")
        );
        for g in &graph.guards {
            let how = match g.relation {
                Relation::Eq => "==",
                Relation::Le => "<=",
            };
            let because = quote(&g.because);
            let _ = writeln!(out, "  guard <{}> {how} <{}> {because}", g.left, g.right);
        }
        self.region(graph, &tokens, Graph::BODY, 1, &mut out);
        out.push_str(&leave("  return", &tokens, &body.results));
        out.push_str("}\n");
        out
    }

    fn region(
        &mut self,
        graph: &Graph,
        tokens: &Tokens,
        id: RegionId,
        depth: usize,
        out: &mut String,
    ) {
        for &n in &graph.region(id).nodes {
            self.node(graph, tokens, n, depth, out);
        }
    }

    fn node(&mut self, graph: &Graph, tokens: &Tokens, n: NodeId, depth: usize, out: &mut String) {
        let pad = "  ".repeat(depth);
        if !graph.contains(n) {
            let _ = writeln!(out, "{pad}// {n} was removed");
            return;
        }
        let node = graph.node(n);
        out.push_str(&pad);
        let results: Vec<String> = node
            .results
            .iter()
            .map(|&v| tokens.define(graph, v))
            .collect();
        if !results.is_empty() {
            let _ = write!(out, "{} = ", results.join(", "));
        }
        out.push_str(node.op.def().mnemonic());
        let args: Vec<&str> = node.args.iter().map(|&v| tokens.get(v)).collect();
        if !args.is_empty() {
            let _ = write!(out, " {}", args.join(", "));
        }
        out.push_str(&self.attrs(&node.op.def().attrs()));
        for &r in &node.regions {
            let params: Vec<String> = graph
                .region(r)
                .params
                .iter()
                .map(|&v| format!("{}: {}", tokens.define(graph, v), typed(graph, v)))
                .collect();
            let _ = writeln!(out, " ({}) {{", params.join(", "));
            self.region(graph, tokens, r, depth + 1, out);
            let yields = leave(&format!("{pad}  yield"), tokens, &graph.region(r).results);
            let _ = write!(out, "{yields}{pad}}}");
        }
        if !node.results.is_empty() {
            let types: Vec<String> = node.results.iter().map(|&v| typed(graph, v)).collect();
            let _ = write!(out, " : {}", types.join(", "));
        }
        if self.options.origins && !node.origins.is_empty() {
            let places: Vec<String> = node
                .origins
                .iter()
                .map(|o| format!("{}:{}", quote(&o.file), quote(&o.node)))
                .collect();
            let _ = write!(out, " loc({})", places.join(", "));
        }
        out.push('\n');
    }

    fn attrs(&mut self, attrs: &Attrs) -> String {
        if attrs.0.is_empty() {
            return String::new();
        }
        let list: Vec<String> = attrs
            .0
            .iter()
            .map(|(n, a)| format!("{n} = {}", self.attr(a)))
            .collect();
        format!(" {{{}}}", list.join(", "))
    }

    fn attr(&mut self, a: &Attr) -> String {
        match a {
            Attr::Bool(b) => b.to_string(),
            Attr::Int(i) => i.to_string(),
            Attr::Float(f) => float(*f),
            Attr::Name(n) => n.clone(),
            Attr::Str(s) => quote(s),
            Attr::Dim(d) => format!("<{d}>"),
            Attr::Dims(ds) => {
                let dim = |d: &crate::Dim| {
                    d.as_const()
                        .map_or_else(|| format!("<{d}>"), |c| c.to_string())
                };
                let list: Vec<String> = ds.iter().map(dim).collect();
                format!("[{}]", list.join(", "))
            }
            Attr::Tensor(t) => format!("{} {}", t.ty(), self.elements(t)),
        }
    }

    /// The elements of a literal, so that they parse back to the same bits:
    /// numbers, one number for all, bytes in hex, or a place in a file.
    fn elements(&mut self, t: &Tensor) -> String {
        let n = t.len();
        if t.dtype() == DType::Str {
            let items: Vec<String> = t.as_strings().iter().map(|s| quote(s)).collect();
            return format!("({})", items.join(", "));
        }
        let number = |i: usize| {
            if computes_in_integers(t.dtype()) {
                t.get_i64(i).to_string()
            } else {
                float(t.get_f64(i))
            }
        };
        if n > 1 && is_splat(t) {
            return format!("splat {}", number(0));
        }
        let limit = match self.blobs {
            Some(_) => INLINE_LIMIT.0,
            None => INLINE_LIMIT.1,
        };
        if n > limit {
            return match &mut self.blobs {
                Some(blobs) => {
                    let (file, offset) = blobs(t.bytes());
                    format!("file({}, {offset}, {})", quote(&file), t.bytes().len())
                }
                None => format!("omitted {:016x}", digest(t.bytes())),
            };
        }
        let exact = computes_in_integers(t.dtype()) || same_bits(t, &t.to_f64());
        if !exact {
            let hex: String = t.bytes().iter().map(|b| format!("{b:02x}")).collect();
            return format!("hex \"{hex}\"");
        }
        let items: Vec<String> = (0..n).map(number).collect();
        format!("({})", items.join(", "))
    }
}

/// How each value of a graph is shown.
struct Tokens(Vec<String>);

impl Tokens {
    fn of(graph: &Graph, ids: bool) -> Tokens {
        let mut tokens = vec![String::new(); graph.value_count()];
        let mut taken = BTreeSet::new();
        let mut order = vec![];
        definitions(graph, Graph::BODY, &mut order);
        for (i, v) in order.into_iter().enumerate() {
            let plain = graph.value(v).name.as_ref().filter(|n| is_word(n));
            tokens[v.index()] = match plain {
                Some(name) if taken.insert(name.clone()) => format!("%{name}"),
                _ if ids => v.to_string(),
                _ => format!("%{i}"),
            };
        }
        // Values that nothing live defines, in graphs that are broken.
        for (i, token) in tokens.iter_mut().enumerate() {
            if token.is_empty() {
                *token = format!("%undefined.{i}");
            }
        }
        Tokens(tokens)
    }

    fn get(&self, v: Value) -> &str {
        self.0.get(v.index()).map_or("%unknown", |t| t)
    }

    /// Where the value is defined: with its name, if that is not its token.
    fn define(&self, graph: &Graph, v: Value) -> String {
        let token = self.get(v);
        match &graph.value(v).name {
            Some(name) if token[1..] != **name => format!("{token} {}", quote(name)),
            _ => token.to_string(),
        }
    }
}

/// Every value in the order in which a reader makes them.
fn definitions(graph: &Graph, region: RegionId, out: &mut Vec<Value>) {
    out.extend(&graph.region(region).params);
    for &n in &graph.region(region).nodes {
        if graph.contains(n) {
            let node = graph.node(n);
            for &r in &node.regions {
                definitions(graph, r, out);
            }
            out.extend(&node.results);
        }
    }
}

fn typed(graph: &Graph, v: Value) -> String {
    let shard = |s: &ShardSpec| format!(" shard {s}");
    let data = graph.value(v);
    let shard = data.shard.as_ref().map(shard).unwrap_or_default();
    format!("{}{shard}", data.ty)
}

fn tie(port: &Port) -> String {
    match &port.kind {
        PortKind::Caller => String::new(),
        PortKind::State(s) => format!(" = state @{}", symbol(s)),
    }
}

fn leave(word: &str, tokens: &Tokens, values: &[Value]) -> String {
    let names: Vec<&str> = values.iter().map(|&v| tokens.get(v)).collect();
    let space = if names.is_empty() { "" } else { " " };
    format!("{word}{space}{}\n", names.join(", "))
}

/// Whether one number gives all of the tensor's bits.
fn is_splat(t: &Tensor) -> bool {
    let Some(size) = t.dtype().size() else {
        return t.len() <= INLINE_LIMIT.1 && same_bits(t, &vec![t.get_f64(0); t.len()]);
    };
    let mut elements = t.bytes().chunks_exact(size);
    let Some(first) = elements.next() else {
        return false;
    };
    let one = Tensor::new(t.dtype(), [1], first.to_vec());
    elements.all(|e| e == first) && one.is_ok_and(|one| same_bits(&one, &[t.get_f64(0)]))
}

/// Whether these numbers, rounded to the tensor's type, are its very bits.
fn same_bits(t: &Tensor, values: &[f64]) -> bool {
    let exact = !computes_in_integers(t.dtype()) || t.dtype().bits() <= 32;
    let rounded = if exact {
        // Every NaN is printed alike.
        let plain = |&v: &f64| if v.is_nan() { f64::NAN } else { v };
        let values: Vec<f64> = values.iter().map(plain).collect();
        Tensor::from_f64(t.dtype(), t.shape(), &values)
    } else {
        let ints = vec![t.get_i64(0); values.len()];
        Tensor::from_i64(t.dtype(), t.shape(), &ints)
    };
    rounded.is_ok_and(|r| r == *t)
}

/// FNV-1a: shows that two omitted constants differ.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A number that parses back to the same bits and is never taken for an integer.
pub(crate) fn float(v: f64) -> String {
    match v {
        v if v.is_nan() => "nan".into(),
        v if v.is_infinite() => if v > 0.0 { "inf" } else { "-inf" }.into(),
        v => format!("{v:?}"),
    }
}

/// A letter or `_`, then letters, digits, `_`, `.` and `$`.
fn is_word(name: &str) -> bool {
    let first = name.chars().next();
    first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.$".contains(c))
}

/// A name as it stands after `@`: quoted where it is not plain.
fn symbol(name: &str) -> String {
    let plain = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.$-".contains(c));
    if plain { name.to_string() } else { quote(name) }
}

fn quote(s: &str) -> String {
    let escaped = s
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{escaped}\"")
}
