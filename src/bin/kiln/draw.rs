//! A graph as a drawing: Graphviz's language, and SVG.

use kiln::ir::{Graph, NodeId, Op};
use layout::backends::svg::SVGWriter;
use layout::gv::{DotParser, GraphBuilder};

/// The groups of a compiled function in Graphviz's language.
pub fn dot(f: &Graph) -> String {
    let mut out = format!(
        "digraph \"{}\" {{\n  node [shape=box, fontname=monospace];\n",
        f.name
    );
    for (port, v) in f.params.iter().zip(&f.body().params) {
        let label = escape(&format!("{} : {}", port.name, f.ty(*v)));
        out += &format!("  in{} [label=\"{label}\", shape=ellipse];\n", v.index());
    }
    for &n in &f.body().nodes {
        // Weights and literals would be most of the picture, and say nothing.
        if hidden(f, n) {
            continue;
        }
        out += &format!("  n{} [label=\"{}\"];\n", n.0, label(f, n));
        for &a in &f.node(n).args {
            match f.producer(a) {
                Some((p, _)) if hidden(f, p) => {}
                Some((p, _)) => out += &format!("  n{} -> n{};\n", p.0, n.0),
                None => out += &format!("  in{} -> n{};\n", a.index(), n.0),
            }
        }
    }
    for (i, (port, &v)) in f.results.iter().zip(&f.body().results).enumerate() {
        let label = escape(&format!("{} : {}", port.name, f.ty(v)));
        out += &format!("  out{i} [label=\"{label}\", shape=ellipse];\n");
        match f.producer(v) {
            Some((p, _)) => out += &format!("  n{} -> out{i};\n", p.0),
            None => out += &format!("  in{} -> out{i};\n", v.index()),
        }
    }
    out + "}\n"
}

/// The same as SVG; an error says what the layout could not read.
pub fn svg(f: &Graph) -> Result<String, String> {
    let mut parser = DotParser::new(&dot(f));
    let graph = parser.process()?;
    let mut builder = GraphBuilder::new();
    builder.visit_graph(&graph);
    let mut drawing = builder.get();
    let mut writer = SVGWriter::new();
    drawing.do_it(false, false, false, &mut writer);
    Ok(writer.finalize())
}

fn hidden(f: &Graph, n: NodeId) -> bool {
    matches!(f.node(n).op, Op::Global(_) | Op::Constant(_))
}

/// What a node computes, and what comes out.
fn label(f: &Graph, n: NodeId) -> String {
    let node = f.node(n);
    let mut names: Vec<&str> = (node.regions.iter())
        .flat_map(|&r| &f.region(r).nodes)
        .filter(|&&m| !matches!(f.node(m).op, Op::Constant(_) | Op::Broadcast(_)))
        .map(|&m| f.node(m).op.def().mnemonic())
        .collect();
    if names.is_empty() {
        names.push(node.op.def().mnemonic());
    }
    let mut lines: Vec<String> = names.chunks(4).take(3).map(|c| c.join(" ")).collect();
    if names.len() > 12 {
        lines.push(format!("… {} in all", names.len()));
    }
    lines.extend(node.results.iter().map(|&v| f.ty(v).to_string()));
    escape(&lines.join("\n"))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
