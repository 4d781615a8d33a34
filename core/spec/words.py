"""What does each field of a spec mean, in a sentence? For `moectl explain` and for people.

Types and limits are the types' own to tell; what stands here is what they cannot say. A test holds
that no sentence outlives its field.
"""

WORDS = {
    "Cluster.nodes": "The machines of the fleet. Each runs one agent.",
    "Cluster.nodes.name": "How the node is called everywhere: `moectl get nodes`, n1/d0.",
    "Cluster.nodes.address": "Where its agent and workers listen; nodes of one machine differ.",
    "Cluster.nodes.devices": "The accelerators of the node. One worker of a model runs on each.",
    "Cluster.nodes.devices.id": "Its name on its node; the device is called NODE/ID.",
    "Cluster.nodes.devices.kind": "What it is. A cpu device is a share of RAM and one thread.",
    "Cluster.nodes.devices.hbm": "All of its memory that models may use, a whole number of pages.",
    "Cluster.nodes.devices.pageSize": "The unit in which memory is given out; a power of two.",
    "Cluster.nodes.devices.pretouch": "Free memory made ready in the background; all by default.",
    "Cluster.nodes.devices.hardware": "For plans: the accelerator's sheet, any figure replaced.",
    "Cluster.leaseTtl": "How long a node that says nothing counts as alive.",
    "Model.source.path": "Folder of the checkpoint: config.json, tokenizer, safetensors.",
    "Model.parallelism.experts": "Over how many devices the routed experts of every layer are"
    " spread, or auto: the planner chooses. `moectl scale` changes it while the model serves.",
    "Model.memory.kvPerDevice": "Keys and values that a rank starts with; free pages add to them.",
    "Model.engine.maxBatchTokens": "Tokens that one step of a rank computes at most.",
    "Model.engine.maxRequests": "Requests that a rank computes at once; others wait.",
    "Model.engine.prefillChunk": "Tokens of a prompt that one step reads at most.",
    "Model.engine.kvBlockTokens": "Tokens in a block of keys and values.",
    "Model.engine.maxContext": "Tokens of prompt and answer together; by default the model's.",
    "Model.engine.dtype": "Form of weights in memory; auto is the best that the devices have.",
    "Model.engine.prefixCache": "Share the keys and values of requests that begin alike.",
    "Model.engine.threads": "Threads of arithmetic in one worker of a cpu device.",
    "Model.precision": "reproducible: the same tokens whatever else is in the batch, bit for bit.",
    "Model.slo.ttft": "Time to the first token that users are owed.",
    "Model.slo.tpot": "Time per token after the first that users are owed.",
    "Model.workload.inputTokens": "Length of a usual prompt; plans and auto count with it.",
    "Model.workload.outputTokens": "Length of a usual answer.",
    "Model.workload.requestsPerS": "The rate that auto has to serve; by default as many as can be.",
    "Model.replayDeadline": "How long a request whose rank is gone waits for another one.",
}


def words_of(kind: str, path: str) -> str:
    """The sentence about a field, by its dotted path below `spec`; "" when there is none."""
    return WORDS.get(f"{kind}.{path}", "")
