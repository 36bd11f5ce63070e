//! The demo: sentence similarities from a compiled MiniLM.
//!
//! usage: similarity MODEL.kiln tokenizer.json

use kiln::ir::DType;
use kiln::runtime::{Model, Session, TensorRef};
use kiln::text::Tokenizer;
use std::path::Path;
use std::time::Instant;

const SENTENCES: [&str; 6] = [
    "A man is playing a guitar on the street.",
    "Someone performs music with a guitar outdoors.",
    "The stock market fell sharply this morning.",
    "Shares dropped at the opening of trading.",
    "How do I bake sourdough bread?",
    "A recipe for making bread with a natural starter.",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, artifact, tokenizer] = &args[..] else {
        return Err("usage: similarity MODEL.kiln tokenizer.json".into());
    };
    let tokenizer = Tokenizer::open(Path::new(tokenizer))?;
    let start = Instant::now();
    let model = Model::load(Path::new(artifact))?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let threads = std::thread::available_parallelism()?.get();
    let mut session = Session::new(model.clone(), threads)?;
    let entry = model.entry(None)?;

    let batch = tokenizer.batch(&SENTENCES, 128)?;
    let shape = [batch.rows, batch.columns];
    let bytes = |v: &[i64]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (ids, mask) = (bytes(&batch.ids), bytes(&batch.mask));
    let tensor = |bytes| TensorRef {
        dtype: DType::I64,
        shape: &shape,
        bytes,
    };
    let inputs = [
        ("input_ids", tensor(&ids)),
        ("attention_mask", tensor(&mask)),
    ];
    session.run(entry, &inputs)?;
    let start = Instant::now();
    session.run(entry, &inputs)?;
    let run_ms = start.elapsed().as_secs_f64() * 1e3;

    // Token vectors [rows, columns, width], averaged over the tokens of a text.
    let index = model.program().entries[entry]
        .outputs
        .iter()
        .position(|o| o.dtype == DType::F32 && o.dims.len() == 3);
    let out = index
        .and_then(|i| session.output(i))
        .ok_or("the model has no token vectors")?;
    let width = out.shape[2];
    let values: Vec<f32> = out
        .bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let vectors: Vec<Vec<f32>> = (0..batch.rows)
        .map(|r| {
            let mut mean = vec![0f32; width];
            for c in (0..batch.columns).filter(|c| batch.mask[r * batch.columns + c] == 1) {
                let at = (r * batch.columns + c) * width;
                mean.iter_mut()
                    .zip(&values[at..at + width])
                    .for_each(|(m, v)| *m += v);
            }
            let norm = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
            mean.iter().map(|x| x / norm).collect()
        })
        .collect();
    let cosine = |a: usize, b: usize| {
        vectors[a]
            .iter()
            .zip(&vectors[b])
            .map(|(x, y)| x * y)
            .sum::<f32>()
    };
    println!("cosine similarity");
    for (i, text) in SENTENCES.iter().enumerate() {
        let row: Vec<String> = (0..SENTENCES.len())
            .map(|j| format!("{:5.2}", cosine(i, j)))
            .collect();
        println!("  {}  {text}", row.join(" "));
    }
    for (i, text) in SENTENCES.iter().enumerate().step_by(2) {
        let others = (0..SENTENCES.len()).filter(|&j| j != i);
        if let Some(j) = others.max_by(|&a, &b| cosine(i, a).total_cmp(&cosine(i, b))) {
            println!(
                "closest to \"{text}\"\n        is \"{}\" ({:.2})",
                SENTENCES[j],
                cosine(i, j)
            );
        }
    }
    println!(
        "loaded in {load_ms:.1} ms; {} texts of {} tokens in {run_ms:.2} ms on {threads} threads ({})",
        batch.rows,
        batch.columns,
        model.level()
    );
    Ok(())
}
