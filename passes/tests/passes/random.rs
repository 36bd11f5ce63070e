//! Random modules mean the same after every pass and after the whole pipeline.

use kiln_ir::filetest::{random_module, same_meaning};
use kiln_ir::print::{PrintOptions, print_module};
use kiln_passes::pipeline;

#[test]
fn random_modules_keep_their_meaning() {
    let text = |m: &_| print_module(m, &PrintOptions::default());
    let mut names: Vec<&str> = pipeline::ALL.iter().map(|p| p.name).collect();
    names.push("compile");
    for seed in 0..100 {
        let module = random_module(seed, 24);
        for name in &names {
            let mut rewritten = module.clone();
            let done = super::pass(name, &mut rewritten);
            let kept = done.and_then(|()| same_meaning(&module, &rewritten, 1e-5));
            if let Err(e) = kept {
                panic!(
                    "seed {seed}, {name}: {e}\n{}\n{}",
                    text(&module),
                    text(&rewritten)
                );
            }
        }
    }
}
