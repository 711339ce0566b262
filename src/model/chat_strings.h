/* The fixed strings of MiniMax-M3's chat prompt: protocol data, exact to the byte. */
#ifndef MSA_MODEL_CHAT_STRINGS_H
#define MSA_MODEL_CHAT_STRINGS_H

#define CHAT_BEGIN     "]~!b["
#define CHAT_END       "[e~[\n"
#define CHAT_NAMESPACE "]<]minimax[>["
#define CHAT_IMAGE     "]<]image[>["
#define CHAT_VIDEO     "]<]video[>["
#define CHAT_THINK     "<mm:think>"
#define CHAT_THINK_END "</mm:think>"

#define CHAT_IDENTITY                                                                              \
    "Your model version is MiniMax-M3, developed by MiniMax. Knowledge cutoff: January 2026. "     \
    "Founded in early 2022, MiniMax is a global AI foundation model company committed to "         \
    "advancing the frontiers of AI towards AGI."

#define CHAT_DEVELOPER "You are a helpful assistant."

#define CHAT_THINKING                                                                              \
    "<thinking_instructions>\n"                                                                    \
    "You have a thinking capability that allows you to reason step by step before responding. "    \
    "When thinking is enabled, wrap your reasoning in <mm:think></mm:think> tags before your "     \
    "response. When thinking is disabled, begin your response directly after the </mm:think> "     \
    "prefix. When thinking is adaptive, decide on your own whether to think for the current "      \
    "turn.\n"

#define CHAT_ENABLED                                                                               \
    "Current thinking mode: enabled. You MUST think step by step before every response, "          \
    "including after receiving function/tool results.\n"
#define CHAT_DISABLED "Current thinking mode: disabled. Do not output any thinking process.\n"
#define CHAT_ADAPTIVE                                                                              \
    "Current thinking mode: adaptive. You are encouraged to think for complex decision-making, "   \
    "multi-step reasoning, or when analyzing function/tool results.\n"

#define CHAT_TOOLS_BEGIN                                                                           \
    "# Tools\n"                                                                                    \
    "You may call one or more tools to assist with the user query.\n"                              \
    "Here are the tools available in JSONSchema format:\n\n"                                       \
    "<tools>\n"

#define CHAT_TOOLS_END                                                                             \
    "</tools>\n\n"                                                                                 \
    "To call tools, wrap all invocations in a single " CHAT_NAMESPACE "<tool_call>" CHAT_NAMESPACE \
    "</tool_call> block. Parameter values containing nested objects or arrays are recursively "    \
    "expanded into XML elements. Example:\n\n" CHAT_NAMESPACE "<tool_call>\n" CHAT_NAMESPACE       \
    "<invoke name=\"tool-name-1\">" CHAT_NAMESPACE "<param-1>value-1" CHAT_NAMESPACE               \
    "</param-1>" CHAT_NAMESPACE "<param-2>" CHAT_NAMESPACE "<item>" CHAT_NAMESPACE                 \
    "<key-a>val-a" CHAT_NAMESPACE "</key-a>" CHAT_NAMESPACE "<key-b>val-b" CHAT_NAMESPACE          \
    "</key-b>" CHAT_NAMESPACE "</item>" CHAT_NAMESPACE "</param-2>" CHAT_NAMESPACE                 \
    "</invoke>\n" CHAT_NAMESPACE "<invoke name=\"tool-name-2\">" CHAT_NAMESPACE                    \
    "<param-1>value-1" CHAT_NAMESPACE "</param-1>" CHAT_NAMESPACE "</invoke>\n" CHAT_NAMESPACE     \
    "</tool_call>"

#define CHAT_ERROR_NO_CALL                                                                         \
    "Message has tool role, but there was no previous assistant message with a tool call!"

#endif
