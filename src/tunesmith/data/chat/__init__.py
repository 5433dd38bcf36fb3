"""Conversations: messages of every form, the tokenizer's chat template, and exactly which tokens are
answers.
"""

from tunesmith.data.chat.messages import Conversation, conversation_of, is_conversation

__all__ = ["Conversation", "conversation_of", "is_conversation"]
