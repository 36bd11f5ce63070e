//! The text form, `.kir`: parsing. What [`crate::print`] writes reads back as it
//! was; types are inferred again, and those that are written down are checked
//! against them. Any text gives a module or an error with its place.

mod body;
mod cursor;
mod literal;

use crate::module::{ConstSource, Global, GlobalKind, Module};
use crate::op::{Op, Signature};
use crate::print::KIR_VERSION;
use crate::tensor::Bytes;
use crate::{Graph, NodeId, PortKind, TensorType};
use cursor::{Cursor, Parsed};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Why a text is no module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K0201: {}:{}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for ParseError {}

/// Reads the constants that a text names.
pub trait Loader {
    /// `length` bytes of a file at an offset, or why not.
    fn load(&self, file: &str, offset: u64, length: u64) -> Result<Bytes, String>;
}

/// For texts that name no files.
pub struct NoFiles;

impl Loader for NoFiles {
    fn load(&self, file: &str, _: u64, _: u64) -> Result<Bytes, String> {
        Err(format!("the file `{file}` is not at hand"))
    }
}

/// The line of each node, by function.
pub type Lines = Vec<BTreeMap<NodeId, usize>>;

/// The module in a text.
pub fn parse_module(text: &str, loader: &dyn Loader) -> Result<Module, ParseError> {
    parse_with_lines(text, loader).map(|(module, _)| module)
}

/// The module in a text, and where its nodes stand.
pub fn parse_with_lines(text: &str, loader: &dyn Loader) -> Result<(Module, Lines), ParseError> {
    let mut p = Parser {
        cursor: Cursor::new(text),
        loader,
        module: Module::default(),
        filled: 0,
    };
    p.version()?;
    let mut heads = vec![];
    while !p.cursor.done() {
        heads.extend(p.item()?);
    }
    let types = |ports: &[HeadPort]| ports.iter().map(|p| p.ty.clone()).collect();
    let signatures: BTreeMap<Arc<str>, Signature> = heads
        .iter()
        .map(|h| {
            let (params, results) = (types(&h.params), types(&h.results));
            (h.name.clone(), Signature { params, results })
        })
        .collect();
    let starts: Vec<usize> = std::iter::once(0)
        .chain(text.match_indices('\n').map(|(i, _)| i + 1))
        .collect();
    let line = |at: usize| starts.partition_point(|&s| s <= at);
    let mut lines = vec![];
    for head in heads {
        let (graph, places) = p.function(head, &signatures)?;
        p.module.functions.push(graph);
        lines.push(places.into_iter().map(|(n, at)| (n, line(at))).collect());
    }
    Ok((p.module, lines))
}

/// A tensor literal, such as `f32[2] (1, 2)`, and what follows it.
pub(crate) fn parse_literal(text: &str) -> Result<(crate::Tensor, &str), ParseError> {
    let mut p = Parser {
        cursor: Cursor::new(text),
        loader: &NoFiles,
        module: Module::default(),
        filled: 0,
    };
    let ty = p.cursor.ty()?;
    let tensor = p.elements(&ty)?;
    let end = p.cursor.here();
    Ok((tensor, &text[end..]))
}

struct Parser<'t> {
    cursor: Cursor<'t>,
    loader: &'t dyn Loader,
    module: Module,
    /// Bytes of the literals that one number fills.
    filled: usize,
}

/// A function up to its body.
struct Head<'t> {
    name: Arc<str>,
    params: Vec<HeadPort<'t>>,
    results: Vec<HeadPort<'t>>,
    /// Where its body starts.
    body: usize,
}

struct HeadPort<'t> {
    /// The value's token, for parameters.
    token: &'t str,
    name: String,
    kind: PortKind,
    ty: TensorType,
    shard: Option<crate::ShardSpec>,
    at: usize,
}

impl<'t> Parser<'t> {
    fn version(&mut self) -> Parsed<()> {
        let c = &mut self.cursor;
        if !c.eat_word("kir") {
            return c.error(format!(
                "expected `kir {KIR_VERSION}`: the text form's version"
            ));
        }
        let at = c.here();
        match c.unsigned()? {
            v if v == u64::from(KIR_VERSION) => Ok(()),
            v => Err(c.error_at(
                at,
                format!("version {v} of the text form is not version {KIR_VERSION}: print the module anew"),
            )),
        }
    }

    fn item(&mut self) -> Parsed<Option<Head<'t>>> {
        let at = self.cursor.here();
        match self.cursor.word() {
            "meta" => self.meta()?,
            "const" => {
                let (name, ty) = self.global_head()?;
                let kind = GlobalKind::Const(self.source(&ty)?);
                self.add_global(at, name, Global { ty, kind })?;
            }
            "state" => {
                let (name, ty) = self.global_head()?;
                let init = self.source(&ty)?;
                let checkpoint = match self.cursor.eat_word("checkpoint") {
                    true => Some(self.cursor.some_string()?.into()),
                    false => None,
                };
                let kind = GlobalKind::State { init, checkpoint };
                self.add_global(at, name, Global { ty, kind })?;
            }
            "func" => return self.head().map(Some),
            _ => {
                let what = "expected `meta`, `const`, `state` or `func`";
                return Err(self.cursor.error_at(at, what));
            }
        }
        Ok(None)
    }

    fn meta(&mut self) -> Parsed<()> {
        let key = self.cursor.some_string()?;
        self.cursor.expect("=")?;
        let value = self.cursor.some_string()?;
        self.module.meta.insert(key, value);
        Ok(())
    }

    fn global_head(&mut self) -> Parsed<(String, TensorType)> {
        let name = self.cursor.symbol()?;
        self.cursor.expect(":")?;
        let ty = self.cursor.ty()?;
        self.cursor.expect("=")?;
        Ok((name, ty))
    }

    fn add_global(&mut self, at: usize, name: String, global: Global) -> Parsed<()> {
        let twice = format!("there are two globals @{name}");
        match self.module.globals.insert(name.into(), global) {
            None => Ok(()),
            Some(_) => Err(self.cursor.error_at(at, twice)),
        }
    }

    fn source(&mut self, ty: &TensorType) -> Parsed<ConstSource> {
        if self.cursor.eat_word("splat") {
            return Ok(ConstSource::Splat(self.cursor.float()?));
        }
        if self.cursor.peek("file") {
            let plain = TensorType::new(ty.dtype, ty.shape.clone());
            return self.elements(&plain).map(ConstSource::Tensor);
        }
        let at = self.cursor.here();
        if !self.cursor.eat_word("expr") {
            let literal = self.cursor.ty()?;
            return self.elements(&literal).map(ConstSource::Tensor);
        }
        let mnemonic = self.cursor.some_word("an op")?;
        let mut args = vec![];
        while self.cursor.peek("@") || (!args.is_empty() && self.cursor.eat(",")) {
            args.push(self.cursor.symbol()?.into());
        }
        let attrs = self.attrs()?;
        let op = Op::parse(mnemonic, &attrs).map_err(|e| self.cursor.error_at(at, e.0))?;
        Ok(ConstSource::Expr {
            op: Box::new(op),
            args,
        })
    }

    fn head(&mut self) -> Parsed<Head<'t>> {
        let name = self.cursor.symbol()?.into();
        let c = &mut self.cursor;
        c.expect("(")?;
        let mut params = vec![];
        while !c.eat(")") {
            if !params.is_empty() {
                c.expect(",")?;
            }
            let at = c.here();
            let token = c.value()?;
            let name = c.string()?.unwrap_or_else(|| token.to_string());
            c.expect(":")?;
            params.push(port(c, at, token, name)?);
        }
        c.expect("->")?;
        let mut results: Vec<HeadPort> = vec![];
        if c.eat("(") {
            while !c.eat(")") {
                if !results.is_empty() {
                    c.expect(",")?;
                }
                results.push(result_port(c, results.len())?);
            }
        } else {
            results.push(result_port(c, 0)?);
        }
        let body = c.here();
        c.skip_block()?;
        Ok(Head {
            name,
            params,
            results,
            body,
        })
    }

    fn function(
        &mut self,
        head: Head<'t>,
        signatures: &BTreeMap<Arc<str>, Signature>,
    ) -> Parsed<(Graph, BTreeMap<NodeId, usize>)> {
        let mut graph = Graph::new(head.name.clone());
        let mut values = BTreeMap::new();
        for p in &head.params {
            let v = graph.add_param(p.name.as_str(), p.kind.clone(), p.ty.clone());
            let data = graph.value_mut(v);
            data.shard = p.shard.clone();
            if p.token.starts_with(|c: char| !c.is_ascii_digit()) {
                data.name = Some(p.token.into());
            }
            if values.insert(p.token, v).is_some() {
                let what = format!("%{} is defined twice", p.token);
                return Err(self.cursor.error_at(p.at, what));
            }
        }
        self.cursor.go(head.body);
        body::parse(self, graph, values, &head, signatures)
    }
}

/// `type [shard …] [= state @s]` of a port.
fn port<'t>(c: &mut Cursor<'t>, at: usize, token: &'t str, name: String) -> Parsed<HeadPort<'t>> {
    let ty = c.ty()?;
    let shard = literal::shard(c)?;
    let kind = if c.eat("=") {
        if !c.eat_word("state") {
            return c.error("expected `state @name`");
        }
        PortKind::State(c.symbol()?.into())
    } else {
        PortKind::Caller
    };
    Ok(HeadPort {
        token,
        name,
        kind,
        ty,
        shard,
        at,
    })
}

/// `[name:] type …`: without a name, `out` and its number.
fn result_port<'t>(c: &mut Cursor<'t>, index: usize) -> Parsed<HeadPort<'t>> {
    let at = c.here();
    let name = match c.string()? {
        Some(s) => s,
        None => c.word().to_string(),
    };
    if c.eat(":") {
        return port(c, at, "", name);
    }
    c.go(at);
    port(c, at, "", format!("out{index}"))
}
