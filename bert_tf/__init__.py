"""BERT for TensorFlow: pre-trained encoders, fine-tuning, and SavedModels that take strings.

    encoder = bert_tf.load("path/to/checkpoint")        # TF1, Hugging Face or run folder
    output = encoder(token_ids, segment_ids, mask)      # .sequence .pooled .layers

Scripts do the rest; see README.md. To read the source, begin with bert_tf/README.md.
"""

from bert_tf.checkpoints import load
from bert_tf.config import VERSION, BertConfig, RunConfig
from bert_tf.encoder import BertEncoder, EncoderOutput
from bert_tf.tokenization import Tokenizer

__version__ = VERSION

__all__ = ["BertConfig", "BertEncoder", "EncoderOutput", "RunConfig", "Tokenizer", "load"]
