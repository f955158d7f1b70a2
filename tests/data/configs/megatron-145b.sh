#!/bin/bash
# GPT of 145 billion parameters as in table 1 of Narayanan et al. 2021, written for these tests.
NODES=192
TP=8

MODEL_ARGS=(
    --num-layers 80            # Table 1
    --hidden-size 12288
    --num-attention-heads 96
    --seq-length 2048
    --max-position-embeddings 2048
    --vocab-size 51200
)
PARALLEL_ARGS="--tensor-model-parallel-size $TP --pipeline-model-parallel-size ${PP:-8} \
    --num-layers-per-virtual-pipeline-stage 5"

torchrun --nproc_per_node 8 --nnodes $NODES pretrain_gpt.py \
    "${MODEL_ARGS[@]}" $PARALLEL_ARGS \
    --micro-batch-size 2 --global-batch-size 2304 \
    --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \
    --train-iters 500000 --lr 6e-5 --lr-decay-style cosine --lr-warmup-iters 2000 \
    --weight-decay 0.1 --adam-beta2 0.95 \
    --fp16 \
    --data-path $DATA --save $CHECKPOINTS
