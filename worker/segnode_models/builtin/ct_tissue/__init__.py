"""Body, gas, adipose tissue, lean soft tissue and bone in any CT without contrast medium."""
