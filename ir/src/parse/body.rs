//! Function bodies: regions and nodes.

use super::cursor::Parsed;
use super::{Head, Parser, literal};
use crate::builder::Builder;
use crate::graph::{Graph, Guard, NodeId, Origin, Origins, RegionId, Relation, Value};
use crate::module::Globals;
use crate::op::{Op, Signature};
use crate::{ShardSpec, TensorType, Tri};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Regions in regions: deeper text is an attack on the stack.
const DEPTH_LIMIT: u32 = 64;

/// Bytes of the text at which nodes stand.
type Places = BTreeMap<NodeId, usize>;
type Callee<'a> = &'a dyn Fn(&str) -> Option<Signature>;

struct Body<'p, 't> {
    parser: &'p mut Parser<'t>,
    globals: &'p Globals,
    callee: Callee<'p>,
    graph: Graph,
    values: BTreeMap<&'t str, Value>,
    places: Places,
}

/// A value to define: token, and name where another.
struct Target<'t> {
    token: &'t str,
    name: Option<Arc<str>>,
    at: usize,
}

/// A node as it is written.
struct Line<'t> {
    start: usize,
    targets: Vec<Target<'t>>,
    op: Op,
    args: Vec<Value>,
    regions: Vec<RegionId>,
    types: Vec<(TensorType, Option<ShardSpec>)>,
    origins: Origins,
}

/// Reads a body in braces.
pub(super) fn parse<'t>(
    parser: &mut Parser<'t>,
    graph: Graph,
    values: BTreeMap<&'t str, Value>,
    head: &Head<'t>,
    signatures: &BTreeMap<Arc<str>, Signature>,
) -> Parsed<(Graph, Places)> {
    let globals = std::mem::take(&mut parser.module.globals);
    let callee = |name: &str| signatures.get(name).cloned();
    let mut body = Body {
        parser,
        globals: &globals,
        callee: &callee,
        graph,
        values,
        places: Places::new(),
    };
    let done = body.function(head);
    let (graph, places) = (body.graph, body.places);
    parser.module.globals = globals;
    done.map(|()| (graph, places))
}

impl<'t> Body<'_, 't> {
    fn function(&mut self, head: &Head<'t>) -> Parsed<()> {
        self.parser.cursor.expect("{")?;
        let mut guards = vec![];
        while self.parser.cursor.eat_word("guard") {
            guards.push(self.guard()?);
        }
        self.graph.guards = guards.clone();
        let at = self.region(Graph::BODY, "return", 0)?;
        let c = &mut self.parser.cursor;
        let results = std::mem::take(&mut self.graph.region_mut(Graph::BODY).results);
        if results.len() != head.results.len() {
            let what = format!(
                "returns {} values where the function has {} results",
                results.len(),
                head.results.len()
            );
            return Err(c.error_at(at, what));
        }
        for (port, v) in head.results.iter().zip(results) {
            let have = self.graph.ty(v);
            if have.same(&port.ty) == Tri::No {
                let what = format!("`{}` is {}, not {have}", port.name, port.ty);
                return Err(c.error_at(at, what));
            }
            self.graph
                .add_result(port.name.as_str(), port.kind.clone(), v);
        }
        // A text that states guards states them all; others get what their ops
        // rely on.
        if !guards.is_empty() {
            self.graph.guards = guards;
        }
        Ok(())
    }

    fn guard(&mut self) -> Parsed<Guard> {
        let c = &mut self.parser.cursor;
        let left = c.dim()?;
        let relation = if c.eat("==") {
            Relation::Eq
        } else {
            c.expect("<=")?;
            Relation::Le
        };
        Ok(Guard {
            left,
            relation,
            right: c.dim()?,
            because: c.string()?.unwrap_or_default(),
        })
    }

    /// Nodes up to `return` or `yield`, the values left with, and `}`. Answers
    /// where those values stand.
    fn region(&mut self, id: RegionId, leave: &str, depth: u32) -> Parsed<usize> {
        while !self.parser.cursor.eat_word(leave) {
            if self.parser.cursor.peek("}") || self.parser.cursor.done() {
                return self.parser.cursor.error(format!("expected `{leave}`"));
            }
            self.node(id, depth)?;
        }
        let at = self.parser.cursor.here();
        let results = self.uses("}")?;
        self.graph.region_mut(id).results = results;
        self.parser.cursor.expect("}")?;
        Ok(at)
    }

    /// Values that are used, with commas, up to what follows them.
    fn uses(&mut self, end: &str) -> Parsed<Vec<Value>> {
        let mut out = vec![];
        while !self.parser.cursor.peek(end) {
            if !out.is_empty() && !self.parser.cursor.eat(",") {
                break;
            }
            if out.is_empty() && !self.parser.cursor.peek("%") {
                break;
            }
            let at = self.parser.cursor.here();
            let token = self.parser.cursor.value()?;
            match self.values.get(token) {
                Some(&v) => out.push(v),
                None => {
                    let what = format!("%{token} is not defined before");
                    return Err(self.parser.cursor.error_at(at, what));
                }
            }
        }
        Ok(out)
    }

    fn target(&mut self) -> Parsed<Target<'t>> {
        let c = &mut self.parser.cursor;
        let at = c.here();
        let token = c.value()?;
        let plain = token.starts_with(|c: char| !c.is_ascii_digit());
        let name = match c.string()? {
            Some(name) => Some(name.into()),
            None => plain.then(|| token.into()),
        };
        Ok(Target { token, name, at })
    }

    fn define(&mut self, target: Target<'t>, v: Value) -> Parsed<()> {
        self.graph.value_mut(v).name = target.name;
        match self.values.insert(target.token, v) {
            None => Ok(()),
            Some(_) => {
                let what = format!("%{} is defined twice", target.token);
                Err(self.parser.cursor.error_at(target.at, what))
            }
        }
    }

    fn node(&mut self, region: RegionId, depth: u32) -> Parsed<()> {
        let start = self.parser.cursor.here();
        let targets = self.targets()?;
        let at = self.parser.cursor.here();
        let mnemonic = self.parser.cursor.some_word("an op")?;
        // A value that follows an op without arguments starts the next line.
        let args = if self.next_is_a_definition() {
            vec![]
        } else {
            self.uses("{")?
        };
        let attrs = self.parser.attrs()?;
        let op = Op::parse(mnemonic, &attrs).map_err(|e| self.parser.cursor.error_at(at, e.0))?;
        let mut regions = vec![];
        while self.parser.cursor.peek("(") {
            regions.push(self.owned(depth + 1)?);
        }
        let line = Line {
            start,
            targets,
            op,
            args,
            regions,
            types: self.annotations()?,
            origins: self.origins()?,
        };
        self.push(region, line)
    }

    /// `%a, %b =`, or nothing.
    fn targets(&mut self) -> Parsed<Vec<Target<'t>>> {
        let mut targets = vec![];
        while self.parser.cursor.peek("%") || (!targets.is_empty() && self.parser.cursor.eat(",")) {
            targets.push(self.target()?);
        }
        if !targets.is_empty() {
            self.parser.cursor.expect("=")?;
        }
        Ok(targets)
    }

    /// Whether a line `%a, %b = …` follows.
    fn next_is_a_definition(&mut self) -> bool {
        let mut look = self.parser.cursor.clone();
        loop {
            if !look.peek("%") || look.value().is_err() || look.string().is_err() {
                return false;
            }
            if !look.eat(",") {
                return look.eat("=");
            }
        }
    }

    fn owned(&mut self, depth: u32) -> Parsed<RegionId> {
        if depth > DEPTH_LIMIT {
            let what = format!("regions are nested deeper than {DEPTH_LIMIT}");
            return self.parser.cursor.error(what);
        }
        let region = self.graph.add_region();
        self.parser.cursor.expect("(")?;
        let mut first = true;
        while !self.parser.cursor.eat(")") {
            if !std::mem::take(&mut first) {
                self.parser.cursor.expect(",")?;
            }
            let target = self.target()?;
            self.parser.cursor.expect(":")?;
            let ty = self.parser.cursor.ty()?;
            let shard = literal::shard(&mut self.parser.cursor)?;
            let v = self.graph.add_region_param(region, ty);
            self.graph.value_mut(v).shard = shard;
            self.define(target, v)?;
        }
        self.parser.cursor.expect("{")?;
        self.region(region, "yield", depth)?;
        Ok(region)
    }

    /// `: f32[4] shard [dp], i64[]`, or nothing.
    fn annotations(&mut self) -> Parsed<Vec<(TensorType, Option<ShardSpec>)>> {
        let mut types = vec![];
        if !self.parser.cursor.eat(":") {
            return Ok(types);
        }
        loop {
            let ty = self.parser.cursor.ty()?;
            types.push((ty, literal::shard(&mut self.parser.cursor)?));
            if !self.parser.cursor.eat(",") {
                return Ok(types);
            }
        }
    }

    /// `loc("file":"node", …)`, or nothing.
    fn origins(&mut self) -> Parsed<Origins> {
        let mut origins = Origins::new();
        let c = &mut self.parser.cursor;
        if !c.eat_word("loc") {
            return Ok(origins);
        }
        c.expect("(")?;
        while !c.eat(")") {
            if !origins.is_empty() {
                c.expect(",")?;
            }
            let file = c.some_string()?.into();
            c.expect(":")?;
            let node = c.some_string()?.into();
            origins.insert(Origin { file, node });
        }
        Ok(origins)
    }

    fn push(&mut self, region: RegionId, line: Line<'t>) -> Parsed<()> {
        let fail = |body: &Self, what: String| body.parser.cursor.error_at(line.start, what);
        let mut b = Builder::at_end(&mut self.graph, self.globals, region);
        b.callee = self.callee;
        b.origins = line.origins;
        let pushed = b.push_with_regions(line.op, &line.args, line.regions);
        let results = pushed.map_err(|e| fail(self, e.0))?;
        if results.len() != line.targets.len() {
            let (n, m) = (results.len(), line.targets.len());
            return Err(fail(self, format!("the op has {n} results, not {m}")));
        }
        if !line.types.is_empty() && line.types.len() != results.len() {
            let (n, m) = (results.len(), line.types.len());
            return Err(fail(self, format!("{m} types for {n} results")));
        }
        for (&v, (ty, shard)) in results.iter().zip(line.types) {
            let inferred = self.graph.ty(v);
            if inferred.same(&ty) == Tri::No {
                let what = format!("the result is {inferred}, not {ty}");
                return Err(fail(self, what));
            }
            let data = self.graph.value_mut(v);
            // Sizes that a guard equates may be written either way.
            data.ty = ty;
            data.shard = shard;
        }
        for (target, &v) in line.targets.into_iter().zip(&results) {
            self.define(target, v)?;
        }
        if let Some(&id) = self.graph.region(region).nodes.last() {
            self.places.insert(id, line.start);
        }
        Ok(())
    }
}
