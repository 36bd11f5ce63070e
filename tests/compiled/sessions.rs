//! Sessions at once, and the processors that their threads stay on.

use super::{artifact, artifacts, levels, run};
use kiln::ir::{DType, Tensor};
use kiln::runtime::threads::allowed;
use kiln::runtime::{Model, Pin, Session, Threads};

#[test]
fn sessions_at_once_have_the_results_of_one_alone() {
    let Some(target) = levels().pop() else { return };
    let path = artifact(artifacts::module(), target, "sessions");
    let model = Model::load(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    // Enough work that it is shared out.
    let (b, width) = (64, 512);
    let values: Vec<f64> = (0..b * width).map(|i| (i % 97) as f64 / 97.0).collect();
    let x = Tensor::from_f64(DType::F32, [b, width], &values).unwrap();
    let k = Tensor::from_i64(DType::I64, [b], &vec![1; b]).unwrap();
    let inputs = [("x", &x), ("k", &k)];
    let mut alone = Session::new(model.clone(), 1).unwrap();
    let want = run(&mut alone, "f", &inputs);
    let pins = [
        Threads::from(3),
        Threads {
            count: 0,
            pin: Pin::Auto,
        },
        Threads {
            count: 0,
            pin: Pin::Processors(allowed()),
        },
        Threads {
            count: 1,
            pin: Pin::Processors(allowed()),
        },
    ];
    std::thread::scope(|s| {
        for threads in &pins {
            let (model, want, inputs) = (model.clone(), &want, &inputs);
            s.spawn(move || {
                let mut session = Session::new(model, threads.clone()).unwrap();
                let before = allowed();
                let pinned = session.pin_caller().unwrap();
                let here = allowed().len();
                assert_eq!(pinned.is_some(), threads.pin != Pin::Free);
                assert!(pinned.is_none() || here == 1, "{here} processors");
                for _ in 0..200 {
                    assert_eq!(&run(&mut session, "f", inputs), want);
                }
                drop(pinned);
                assert_eq!(allowed(), before);
            });
        }
    });
}

#[test]
fn processors_that_are_not_there_are_named() {
    let Some(target) = levels().pop() else { return };
    let path = artifact(artifacts::module(), target, "pins");
    let model = Model::load(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let pin = Pin::Processors(vec![1023]);
    let error = Session::new(model, Threads { count: 0, pin })
        .err()
        .unwrap();
    assert!(
        error.code == "K0733" && error.message.contains("1023"),
        "{error}"
    );
    assert!(error.help.is_some_and(|h| h.contains("it may use")));
}
