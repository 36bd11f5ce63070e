//! Imports a model and prints its nodes: `import MODEL.onnx`.
use kiln_import::*;
fn main() {
    for path in std::env::args().skip(1) {
        let t = std::time::Instant::now();
        match import_onnx(path.as_ref(), &ImportOptions::default()) {
            Ok(m) => {
                let g = &m.module.functions[0];
                for (p, &v) in g.params.iter().zip(&g.body().params) {
                    println!("param {} {}", p.name, g.ty(v));
                }
                for n in g.nodes_in_order() {
                    let node = g.node(n);
                    let tys: Vec<String> = node
                        .results
                        .iter()
                        .map(|&v| format!("{v}: {}", g.ty(v)))
                        .collect();
                    println!(
                        "  {} = {} {:?}",
                        tys.join(", "),
                        node.op.def().mnemonic(),
                        node.args
                    );
                }
                for (p, &v) in g.results.iter().zip(&g.body().results) {
                    println!("result {} {v} {}", p.name, g.ty(v));
                }
                for gd in &g.guards {
                    println!(
                        "guard {} {:?} {} ({})",
                        gd.left, gd.relation, gd.right, gd.because
                    );
                }
                for w in m.warnings {
                    println!("{w}");
                }
                println!(
                    "{} nodes, {} globals, {:?}",
                    g.nodes_in_order().len(),
                    m.module.globals.len(),
                    t.elapsed()
                );
            }
            Err(e) => e.iter().take(20).for_each(|d| println!("{d}")),
        }
    }
}
